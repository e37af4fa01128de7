"""Keeps FAAS_EVENTS bounded: removes from it what every function that takes it has settled. Touches no other stream, ever.

A limits stream keeps settled messages until they are eight days old, and one that is full refuses publishers. How far a subject
is settled follows from the state of every consumer that takes a part of it, and nothing younger than the dedup window is
removed: after a restart the server knows only the ids of what is still there. Several nodes may sweep at once without harm;
the one that has swept tells the others, so that one does it at a time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import structlog
from msgspec import Struct

from faas import subjects
from faas.bus.connection import ApiError, Bus, Message
from faas.errors import BusUnavailable

log = structlog.get_logger()

PACE_S = 30.0
SPREAD = 0.2
"""Of the pace, at random: the nodes of a cluster started together must not stay together."""
FILLING, RELIEVED = 0.8, 0.7
"""Of max_bytes: above the first it is said once that the stream fills up, below the second that it does no longer."""

Expected = Callable[[], Iterable[tuple[str, Sequence[str]]]]
"""(name, filters) of the consumers that this node pulls from: one of them that is missing holds back what it takes, and is made again."""


class Swept(Struct, frozen=True, kw_only=True):
    """What one sweep found and did. `held_by` is the consumer that keeps most from being removed, "" where none does."""

    purged: int = 0
    messages: int = 0
    fill: float = 0.0
    held_by: str = ""


class _Config(Struct):
    subjects: tuple[str, ...] = ()
    max_bytes: int = -1
    duplicate_window: int = 0


class _State(Struct):
    messages: int = 0
    bytes: int = 0
    last_seq: int = 0
    last_ts: str = ""


class _Stream(Struct):
    config: _Config
    state: _State
    created: str = ""
    ts: str = ""


class _Place(Struct):
    stream_seq: int = 0


class _Filters(Struct):
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] | None = None


class _Consumer(Struct):
    name: str
    config: _Filters
    delivered: _Place
    ack_floor: _Place
    num_pending: int = 0
    num_ack_pending: int = 0

    @property
    def filters(self) -> tuple[str, ...]:
        """What it takes; ">" where it has none."""
        one = self.config.filter_subject
        return (*(self.config.filter_subjects or ()), *([one] if one else [])) or (">",)

    def floor(self, last_sequence: int) -> int:
        """The sequence up to which it has settled all that it takes; one that never matched reports an acknowledgement floor of 0 for ever."""
        return self.ack_floor.stream_seq if self.num_pending or self.num_ack_pending else last_sequence


class _Page(Struct):
    total: int = 0
    consumers: tuple[_Consumer, ...] | None = ()


class _Purged(Struct):
    purged: int = 0


class Janitor:
    """`open` it: sweeps at a fixed pace, on one node at a time, until the block is left."""

    def __init__(self, bus: Bus, *, expected: Expected = tuple, pace_s: float = PACE_S) -> None:
        self._bus, self._expected, self._pace_s = bus, expected, pace_s
        self._swept_by_other = asyncio.Event()
        self._done: dict[str, int] = {}  # subject -> the sequence up to which it was purged
        self._created = ""
        self._filling = False

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, *, expected: Expected = tuple, pace_s: float = PACE_S) -> AsyncIterator[Janitor]:
        janitor = cls(bus, expected=expected, pace_s=pace_s)
        heard = await bus.subscribe(subjects.JANITOR, janitor._hear)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(janitor._run())
            try:
                yield janitor
            finally:
                working.cancel()
                await heard.unsubscribe()

    def _hear(self, message: Message) -> None:
        self._swept_by_other.set()

    async def _run(self) -> None:
        while True:
            self._swept_by_other.clear()
            pause_s = self._pace_s * (1 + SPREAD * random.random())
            try:
                async with asyncio.timeout(pause_s):
                    await self._swept_by_other.wait()
                continue  # another node has swept
            except TimeoutError:
                pass
            try:
                await self.sweep()
                await self._bus.publish(subjects.JANITOR, b"")
            except (ApiError, BusUnavailable) as error:
                log.warning("janitor.failed", error=str(error))

    async def sweep(self) -> Swept:
        """One round. Raises ApiError, BusUnavailable."""
        stream = await self._stream()  # before the consumers: what comes after it is below nobody's floor
        if stream is None:
            return Swept()
        if stream.created != self._created:
            self._created, self._done = stream.created, {}  # of another stream, whose sequences say nothing of this one's
        consumers = await self._consumers() if stream.state.messages else []
        horizon = await self._older_than_window(stream) if consumers else 0
        names = {consumer.name for consumer in consumers}
        missing = [one for name, filters in self._expected() if name not in names for one in filters]
        purged = 0
        for subject in sorted({*stream.config.subjects, *(one for consumer in consumers for one in consumer.filters)}):
            takers = [consumer for consumer in consumers if _overlap(consumer.filters, subject)]
            if takers and not _overlap(missing, subject):
                upto = min(horizon, *(taker.floor(stream.state.last_seq) for taker in takers))
                purged += await self._purge(subject, takers, upto=upto)
        if purged:
            log.info("events.purged", stream=subjects.EVENTS, purged=purged)
        after = (await self._stream() if purged else stream) or stream
        floors = {consumer.name: floor for consumer in consumers if (floor := consumer.floor(stream.state.last_seq)) < horizon}
        swept = Swept(
            purged=purged,
            messages=after.state.messages,
            fill=after.state.bytes / after.config.max_bytes if after.config.max_bytes > 0 else 0.0,
            held_by=min(floors, key=floors.__getitem__, default=""),
        )
        self._tell(swept, max_bytes=after.config.max_bytes)
        return swept

    async def _stream(self) -> _Stream | None:
        try:
            return await self._bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, _Stream)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _consumers(self) -> list[_Consumer]:
        found: dict[str, _Consumer] = {}
        while True:
            page = await self._bus.api(f"CONSUMER.LIST.{subjects.EVENTS}", {"offset": len(found)}, _Page)
            found |= {consumer.name: consumer for consumer in page.consumers or ()}
            if not page.consumers or len(found) >= page.total:
                return list(found.values())

    async def _purge(self, subject: str, takers: Sequence[_Consumer], *, upto: int) -> int:
        """Remove what a subject has up to a sequence; nothing is asked of the server where it can have no more than last time."""
        if any(subjects.contains(one, subject) for taker in takers for one in taker.filters):
            upto = min(upto, max(taker.delivered.stream_seq for taker in takers))  # beyond, it has nothing that is settled
        if upto <= self._done.get(subject, 0):
            return 0
        answer = await self._bus.api(f"STREAM.PURGE.{subjects.EVENTS}", {"filter": subject, "seq": upto + 1}, _Purged)
        self._done[subject] = upto
        return answer.purged

    async def _older_than_window(self, stream: _Stream) -> int:
        """The last sequence older than the dedup window, by the server's own clock; read through the stream's leader."""
        begins = _moment(stream.ts) - timedelta(seconds=stream.config.duplicate_window / 1e9)
        if _moment(stream.state.last_ts) < begins:
            return stream.state.last_seq
        question = {"start_time": begins.isoformat().replace("+00:00", "Z"), "next_by_subj": ">"}
        try:
            first = (await self._bus.get(subjects.EVENTS, question)).message
        except ApiError as error:
            if error.status != 404:
                raise
            return 0  # what was there a moment ago is gone: the next round knows better
        return first.seq - 1 if first is not None else 0

    def _tell(self, swept: Swept, *, max_bytes: int) -> None:
        fill = round(swept.fill, 3)
        if swept.fill >= FILLING and not self._filling:
            self._filling = True
            log.warning("stream.filling", stream=subjects.EVENTS, fill=fill, max_bytes=max_bytes, held_by=swept.held_by)
        elif swept.fill < RELIEVED and self._filling:
            self._filling = False
            log.info("stream.relieved", stream=subjects.EVENTS, fill=fill)


def _overlap(filters: Sequence[str], subject: str) -> bool:
    return any(subjects.overlaps(one, subject) for one in filters)


def _moment(text: str) -> datetime:
    """RFC 3339 with nanoseconds, as the server writes it, cut to microseconds."""
    head, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{head}.{(fraction + '000000')[:6]}").replace(tzinfo=UTC)
