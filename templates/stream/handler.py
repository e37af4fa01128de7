"""Sends a text line by line, each as soon as it is there. Replace the loop with what makes its result piece by piece."""

import textwrap
from collections.abc import Iterator

import msgspec

import faas


class Prompt(msgspec.Struct):
    """The event. A payload that does not fit is rejected, with the field named, before `handle` is called."""

    prompt: str
    width: int = 20


def handle(event: Prompt, ctx: faas.Context) -> Iterator[str]:
    """Run once for each event, within limits.timeout. Each item goes out when it is yielded; together they are the result."""
    if event.width < 1:
        raise faas.Reject("width must be 1 or more")  # for good: it is not tried again
    for line in textwrap.wrap(event.prompt, event.width):
        yield line + "\n"
