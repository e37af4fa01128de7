"""Bodies above the bus limit, on the node's connection: in the bucket FAAS_PAYLOADS, named by `dataref` and `Faas-Object`.

Owns how many are moved at once, so that the node's memory stays bounded whatever their size. Knows no event and no outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import BinaryIO

import structlog

from faas.bus.connection import ApiError, Bus, Message, encode_head
from faas.errors import BusUnavailable, FaasError
from faas.objects import Answer, Heard, ObjectInfo, Objects, Read, Refused, reference

log = structlog.get_logger()

AT_ONCE = 4
"""Each way: a body that comes holds two batches at most, one that goes its chunks in flight, so some 24 MiB in all."""
HEAD_BYTES = 1024
"""Around a chunk."""


class Payloads:
    """The bucket as a node uses it. Every method may run many times at once."""

    def __init__(self, bus: Bus) -> None:
        self._objects = Objects(OnBus(bus))
        self._coming, self._going = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)

    async def find(self, name: str) -> ObjectInfo:
        """What is known of an object, nothing fetched. Raises PayloadLost, BusUnavailable."""
        return await self._objects.find(name)

    async def fetch(self, info: ObjectInfo, file: BinaryIO) -> None:
        """Write an object into a file, checked by its digest. Raises PayloadLost, BusUnavailable, OSError."""
        async with self._coming, aclosing(self._objects.read(info)) as parts:
            async for chunks in parts:
                await asyncio.to_thread(file.writelines, chunks)

    async def put(self, read: Read, size_bytes: int, *, prefix: str, kept_s: float) -> str:
        """Store a body for so long, whole or not at all; what names it, `FAAS_PAYLOADS/<prefix>.<digest>`. Raises StoreRefused, BusUnavailable."""
        async with self._going:
            return reference(await self._objects.write(read, size_bytes, prefix=prefix, kept_s=kept_s))

    async def let_go(self, name: str) -> None:
        """Nobody will read it again; where that cannot be said now, its time ends all the same."""
        with suppress(FaasError):
            await self._objects.remove(await self._objects.find(name))


class OnBus:
    """What `Objects` asks of a connection, on the node's."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def chunk_limit_bytes(self) -> int:
        return self._bus.body_limit_bytes - HEAD_BYTES

    async def store(self, subject: str, body: bytes, head: Mapping[str, str]) -> int:
        return (await self._bus.store(subject, body, head=encode_head(head.items()))).sequence

    async def api(self, suffix: str, request: Mapping[str, object]) -> Answer:
        try:
            return await self._bus.api(suffix, request, Answer)
        except ApiError as error:
            raise Refused(error.description, error.number) from error

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[str, asyncio.Queue[Heard]]]:
        heard: asyncio.Queue[Heard] = asyncio.Queue()

        def take(message: Message) -> None:
            heard.put_nowait(Heard(message.status, message.headers or {}, message.data))

        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe(inbox, take)
        try:
            yield inbox, heard
        finally:
            await subscription.unsubscribe()

    async def say(self, subject: str, body: bytes, reply: str) -> None:
        if not self._bus.connected:
            raise BusUnavailable(f"{subject}: the connection is away")
        await self._bus.publish(subject, body, reply=reply)
