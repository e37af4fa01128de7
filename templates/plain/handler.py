"""Counts the words of a text and names the longest. Replace the two types and `handle` with what your function does."""

import msgspec

import faas


class Text(msgspec.Struct):
    """The event. A payload that does not fit is rejected, with the field named, before `handle` is called."""

    text: str
    longest: int = 3


class Words(msgspec.Struct):
    """The result, sent as JSON."""

    count: int
    longest: list[str]


def handle(event: Text, ctx: faas.Context) -> Words:
    """Run once for each event, within limits.timeout."""
    words = event.text.split()
    ctx.log.info("counted %d words", len(words))
    return Words(count=len(words), longest=sorted(set(words), key=lambda word: (-len(word), word))[: event.longest])
