"""What a running attempt says onto the bus: items of a stream to its caller's inbox, and events that its handler publishes. In the order in which they were said.

Owns the pace: a worker that says more than the bus takes is told to wait. Knows no worker and no pool.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from faas import subjects
from faas.bus import streams
from faas.bus.cloudevents import binary_head
from faas.bus.connection import Bus, encode_head
from faas.bus.reading import holds_another
from faas.errors import BusUnavailable, FaasError

log = structlog.get_logger()

WAITING_BYTES = 2**20
"""Said and not yet sent; beyond, the worker waits."""
OVERHEAD_BYTES = 512
"""Of each thing that waits, beside its body: without it a worker that says nothing without end would fill the node's memory."""
TRIES, RETRY_S, STORE_S = 3, 0.5, 2.0
"""Of an event whose stream is full or away: some eight seconds, then the attempt that published it has failed."""
SUBJECTS = 1000
"""Whose streams are remembered; beyond, all are looked up anew."""
_CORE = ""


@dataclass(slots=True, frozen=True)
class Published:
    """An event of a handler, ready for the bus; `id` is its `Nats-Msg-Id`, which is not in its head."""

    subject: str
    body: bytes
    head: bytes
    id: str


@dataclass(slots=True, frozen=True)
class Item:
    """One item of a stream."""

    body: bytes
    content_type: str


class Speech:
    """Makes a `Voice` for every attempt that says something. `open` it; leaving it ends those that still speak."""

    def __init__(self, bus: Bus, *, group: asyncio.TaskGroup) -> None:
        self._bus, self._group = bus, group
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[str, str] = {}  # subject -> the stream that captures it, _CORE where none does

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus) -> AsyncIterator[Speech]:
        async with asyncio.TaskGroup() as group:
            speech = cls(bus, group=group)
            try:
                yield speech
            finally:
                for task in speech._tasks:
                    task.cancel()

    def voice(self, *, chunk_to: str, attempt: int, pause: Callable[[], None], resume: Callable[[], None]) -> Voice:
        """For one attempt; `pause` and `resume` hold its worker back."""
        voice = Voice(chunk_to, attempt, pause=pause, resume=resume)
        task = self._group.create_task(self._speak(voice))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return voice

    async def _speak(self, voice: Voice) -> None:
        while (said := await voice.next()) is not None:
            if voice.failure and isinstance(said, Published):
                continue  # the attempt has failed already: no slot waits for a full stream once for each of its events
            try:
                if isinstance(said, Item):
                    await self._bus.publish(voice.chunk_to, said.body, head=_chunk_head(voice, said.content_type))
                else:
                    await self._publish(said)
            except FaasError as error:
                voice.failure = voice.failure or (
                    f"ctx.publish to {said.subject}: {error}" if isinstance(said, Published) else f"an item: {error}"
                )

    async def _publish(self, event: Published) -> None:
        for left in range(TRIES, -1, -1):
            try:
                named = event.head + encode_head([("Nats-Msg-Id", event.id)])
                if await self._stream(event.subject) == _CORE:
                    await self._bus.publish(event.subject, event.body, head=named)
                    return
                had = await self._bus.store(event.subject, event.body, head=named, timeout_s=STORE_S)
                if had.duplicate and had.stream == subjects.EVENTS and await holds_another(self._bus, had, event.subject):
                    await self._bus.store(event.subject, event.body, head=event.head, timeout_s=STORE_S)
                return
            except BusUnavailable:
                self._streams.pop(event.subject, None)  # the stream that captured it may be gone
                if not left:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _stream(self, subject: str) -> str:
        stream = self._streams.get(subject)
        if stream is None:
            if len(self._streams) >= SUBJECTS:
                self._streams.clear()
            stream = self._streams[subject] = await streams.stream_capturing(self._bus, subject) or _CORE
        return stream

    async def end_stream(self, chunk_to: str, *, items: int, attempt: str, outcome: str, reason: str) -> None:
        """Tell a listener that no more items come: `items` were sent in the last attempt, which ended so; `attempt` is the outcome's."""
        head = [("Faas-Seq", str(items + 1)), ("Faas-Attempt", attempt), ("Faas-Eos", "true"), ("Faas-Outcome", outcome)]
        await self._bus.publish(chunk_to, b"", head=encode_head([*head, *([("Faas-Reason", reason)] if reason else [])]))


@dataclass(slots=True, eq=False)
class Voice:
    """What one attempt has said and the bus has not yet. `failure` says what could not be sent."""

    chunk_to: str
    attempt: int
    pause: Callable[[], None] = field(kw_only=True)
    resume: Callable[[], None] = field(kw_only=True)
    items: int = 0
    failure: str = ""
    _waiting: deque[Item | Published] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _paused: bool = False
    _closed: bool = False
    _spoken: asyncio.Event = field(default_factory=asyncio.Event)
    _silent: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, said: Item | Published) -> None:
        """Hand over one thing; returns at once."""
        self._waiting.append(said)
        self._waiting_bytes += len(said.body) + OVERHEAD_BYTES
        self._spoken.set()
        if self._waiting_bytes > WAITING_BYTES and not self._paused:
            self._paused = True
            self.pause()

    async def next(self) -> Item | Published | None:
        """What is to be sent next; None once nothing will come any more."""
        while not self._waiting:
            if self._closed:
                self._silent.set()
                return None
            self._spoken.clear()
            await self._spoken.wait()
        said = self._waiting.popleft()
        self._waiting_bytes -= len(said.body) + OVERHEAD_BYTES
        if self._paused and self._waiting_bytes <= WAITING_BYTES // 2:
            self._paused = False
            self.resume()
        self.items += isinstance(said, Item)
        return said

    async def finish(self) -> None:
        """Wait until all that was said is sent, or has failed."""
        self._closed = True
        self._spoken.set()
        await self._silent.wait()

    def drop(self) -> None:
        """Forget what waits and say nothing more: its attempt is given up."""
        self._waiting.clear()
        self._closed = True
        self._spoken.set()


def event_of(subject: str, body: bytes, *, id: str, source: str, content_type: str, depth: int, trace: tuple[str, str]) -> Published:
    """A handler's event as a CloudEvent in binary mode, stored once however often it is sent; `trace` is (traceparent, tracestate)."""
    attributes = {"specversion": "1.0", "id": id, "source": source, "type": "faas.published", "datacontenttype": content_type}
    lines = [("Content-Type", content_type), ("Faas-Depth", str(depth))]
    lines += [(name, value) for name, value in zip(("traceparent", "tracestate"), trace, strict=True) if value]
    return Published(subject, body, binary_head(attributes) + encode_head(lines), id)


def _chunk_head(voice: Voice, content_type: str) -> bytes:
    lines = [("Faas-Seq", str(voice.items)), ("Faas-Attempt", str(voice.attempt)), ("Content-Type", content_type)]
    return encode_head(lines)
