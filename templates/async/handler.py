"""Hashes a text by several algorithms at once. Replace `digest` with what you wait for: another service, a file, a process."""

import asyncio
import hashlib
from typing import Literal

import msgspec

import faas

Algorithm = Literal["blake2b", "sha256", "sha3_256", "sha512"]


class Text(msgspec.Struct):
    """The event. A payload that does not fit is rejected, with the field named, before `handle` is called."""

    text: str
    algorithms: list[Algorithm] = msgspec.field(default_factory=lambda: ["sha256"])


async def digest(algorithm: str, data: bytes) -> str:
    """What takes its time. Blocking code goes to a thread, so that the others go on."""
    return (await asyncio.to_thread(hashlib.new, algorithm, data)).hexdigest()


async def handle(event: Text, ctx: faas.Context) -> dict[str, str]:
    """Run once for each event, within limits.timeout; algorithm -> digest in hexadecimal."""
    data = event.text.encode()
    async with asyncio.TaskGroup() as group:
        digests = {algorithm: group.create_task(digest(algorithm, data)) for algorithm in event.algorithms}
    ctx.log.info("made %d digests", len(digests))
    return {algorithm: task.result() for algorithm, task in digests.items()}
