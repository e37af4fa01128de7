"""Keeps the projection filled from the streams, far from the way of any invocation, and strikes the balance: accepted = open + settled.

It looks when somebody asks, and else every LOOK_S; between two batches it rests, so that it takes SHARE of a core at most while nobody waits. Knows
streams, consumers and rows; no pool and no dispatcher.

*The balance.* Per function, from what the bus holds and nothing else: accepted are the events that its consumers filter, each as the
invocation that it is; settled are those of them with a stored outcome; open is what its consumers have pending or unacknowledged,
and what waits in a schedule. `imbalance` = accepted - settled - open. It is taken when all streams are read to their ends and the
consumers stood still meanwhile. At rest it is 0. Above: an event that was accepted is neither waiting nor ended. Below: an outcome is stored and its
event not acknowledged yet, or waits in the stream a second time, or was cancelled in a back-off that goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from faas import subjects
from faas.accounting import rows as reading
from faas.accounting.projection import Position, Projection, ProjectionAbsent
from faas.accounting.rows import Matching, Rows
from faas.bus import replay
from faas.bus.connection import ApiError, Bus
from faas.bus.replay import Consuming, Entry, Extent, Replay
from faas.errors import BusUnavailable
from faas.runs import Place, Run

log = structlog.get_logger()

LOOK_S = 30.0
"""Without a question: what a stream keeps for a day is read in time all the same."""
SETTLE_S = 5.0
"""After a look that found something new: a balance is struck when nothing is."""
SHARE = 0.02
BATCH = 64
"""Small, since one batch holds the event loop up for some 2 ms."""
ASKED_S = 4.0
"""How long a question may wait for what it is about to be read."""
PRUNE_S = 3600.0
NAMED = 5000
"""Back-offs that wait: beyond, each function's are counted by themselves, since one answer cannot name them all."""
NO_EVENTS = (subjects.OUTCOMES, subjects.USAGE, subjects.DEAD, subjects.LOGS, subjects.SCHEDULES, "KV_", "OBJ_")
"""Streams that no function has events in: all others are looked at, since a function may take those of a stream that is not the runtime's."""


Read = Callable[[list[Entry]], Awaitable[Rows]]
"""What a batch of one stream comes to."""


@dataclass(slots=True, frozen=True)
class Balance:
    """Struck at one moment, by (tenant, function); `at` is seconds since the epoch, 0 before the first."""

    at: float = 0.0
    open: dict[tuple[str, str], int] = field(default_factory=dict)
    imbalance: dict[tuple[str, str], int] = field(default_factory=dict)


class Follower:
    """`open` it; `current` waits until what is on the bus by now is in the projection."""

    def __init__(self, bus: Bus, projection: Projection, replay: Replay) -> None:
        self._bus, self.projection, self._replay = bus, projection, replay
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._serving: list[asyncio.Future[None]] = []
        self._pruned_monotonic = 0.0
        self._next_look_s = LOOK_S
        self.behind = 0
        self.balance = Balance()
        self._missing: dict[tuple[str, str], int] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, path: Path) -> AsyncIterator[Follower]:
        async with Projection.open(path) as projection, Replay.open(bus) as replay:
            follower = cls(bus, projection, replay)
            async with asyncio.TaskGroup() as group:
                following = group.create_task(follower._run())
                try:
                    yield follower
                finally:
                    following.cancel()

    async def current(self, within_s: float = ASKED_S) -> None:
        """Wait until all that is on the bus at this moment is read, or so long; then `behind` says how much is not."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._asked.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await done

    async def _run(self) -> None:
        said = ""
        while True:
            self._asked.clear()
            self._serving, self._waiting = self._waiting, []
            try:
                await self._look()
                said = ""
            except ProjectionAbsent:
                pass  # said where it failed
            except (BusUnavailable, ApiError) as error:
                if str(error) != said:
                    log.warning("projection.not_filled", error=str(error))
                said = str(error)
            except Exception:  # nothing depends on this view: whatever breaks it ends no node
                log.exception("projection.not_filled")
            for waiting in self._serving:
                if not waiting.done():
                    waiting.set_result(None)
            self._serving = []
            await self._rest(self._next_look_s)

    async def _rest(self, seconds: float) -> None:
        """Until then, or until somebody asks."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()

    # ------------------------------------------------------------ one look

    async def _look(self) -> None:
        if self.projection.absent:
            await self.projection.write("", Position(), Rows())  # it may be there again
        there = await replay.extents(self._bus)
        # A work queue takes no second reader, and keeps nothing that has ended: what runs of it is known by its outcomes.
        streams = [name for name, one in there.items() if one.retention == "limits" and not name.startswith(NO_EVENTS)]
        events = [name for name in streams if there[name].consumers]
        consumers = await self._consumers(events)
        positions = await self.projection.positions()
        outcomes = there.get(subjects.OUTCOMES)
        kept_since = outcomes.first_ts if outcomes is not None and outcomes.first > 1 else ""
        reads: dict[str, Read] = {name: self._events(Matching(one for one in consumers if one.stream == name)) for name in events}
        reads |= {subjects.OUTCOMES: self._outcomes, subjects.USAGE: _usage, subjects.DEAD: _letters}
        self.behind = sum(_unread(there[name], positions.get(name)) for name in reads if name in there)
        quiet = not self.behind
        for stream, read in reads.items():
            if stream in there:
                await self._follow(stream, read, there=there[stream], known=positions.get(stream), since=kept_since)
        now = time.monotonic()
        if now - self._pruned_monotonic > PRUNE_S:
            self._pruned_monotonic = now
            await self.projection.prune(int(time.time() * 1000))
        await self._strike(consumers, waiting=there.get(subjects.SCHEDULES), quiet=quiet)

    async def _consumers(self, streams: Iterable[str]) -> list[Consuming]:
        return [one for stream in streams for one in await replay.consuming(self._bus, stream)]

    async def _follow(self, stream: str, read: Read, *, there: Extent, known: Position | None, since: str) -> None:
        """Read a stream from where it is known to its end. `since` is when the oldest outcome came that is kept: of events before it the end may be gone."""
        anew = known is None or known.created != there.created or there.last < known.sequence
        if known is None or anew:  # another stream of that name: what it holds is not known at all
            since = "" if stream.startswith(NO_EVENTS) else since
            known = Position(created=there.created, blind_ms=replay.moment_ms(since) if since else 0)
        elif stream == subjects.OUTCOMES and there.first > known.sequence + 1:
            known = Position(created=there.created, sequence=known.sequence, blind_ms=replay.moment_ms(there.first_ts))
        if not _unread(there, known) and not anew:
            return
        began = time.monotonic()
        batches = self._replay.after(stream, known.sequence, batch=BATCH, heads=stream != subjects.USAGE, since=since if anew else "")
        async for entries in batches:
            rows = await read(entries)
            known = Position(created=there.created, sequence=entries[-1].sequence, blind_ms=known.blind_ms)
            await self.projection.write(stream, known, rows)
            self.behind = max(0, self.behind - len(entries))
            if not self._serving and not self._asked.is_set():
                await self._rest((time.monotonic() - began) * (1 / SHARE - 1))
            began = time.monotonic()
        known = Position(created=there.created, sequence=max(known.sequence, there.last), blind_ms=known.blind_ms)
        await self.projection.write(stream, known, Rows())  # the last ones may be deleted already

    def _events(self, matching: Matching) -> Read:
        async def read(entries: list[Entry]) -> Rows:
            found = Rows()
            for entry in entries:
                if functions := matching.functions(entry):
                    body = await self._body(entry) if reading.is_structured(entry) else b""
                    found.accepted += reading.accepted(entry, functions, body)
            return found

        return read

    async def _outcomes(self, entries: list[Entry]) -> Rows:
        found = Rows()
        for entry in entries:
            row = reading.ended(entry, await self._body(entry) if reading.failed(entry) else b"")
            if row is not None:
                found.ended.append(row)
                of_the_attempt = row.start or not row.outcome  # else it ended between two, like what is cancelled in a back-off
                if row.detail and row.attempts and of_the_attempt:
                    found.details.append((f"{row.invocation}.{row.attempts}", row.detail))
        return found

    async def _body(self, entry: Entry) -> bytes:
        """Of one message whose head alone was read; b"" where it is gone."""
        return await replay.body_at(self._bus, entry.stream, entry.sequence)

    # ------------------------------------------------------------ the balance

    async def _strike(self, before: list[Consuming], *, waiting: Extent | None, quiet: bool) -> None:
        """Only where nothing was unread when the look began, and no consumer moved while it went on."""
        self._next_look_s = LOOK_S if quiet else SETTLE_S
        if not quiet or await self._consumers({one.stream: None for one in before}) != before:
            return
        held: dict[tuple[str, str], int] = {}
        for consumer in before:
            key = (consumer.tenant, consumer.function)
            held[key] = held.get(key, 0) + consumer.open
        for key, count in (await self._scheduled(waiting, held)).items():
            held[key] += count
        blind_ms = max((position.blind_ms for position in (await self.projection.positions()).values()), default=0)
        begins: dict[tuple[str, str, str], int] = {}
        for consumer in before:
            place = (consumer.tenant, consumer.function, consumer.stream)
            begins[place] = min(consumer.starts, begins.get(place, consumer.starts))
        unsettled = await self.projection.open_by_function(blind_ms, begins)
        found = {key: unsettled.get(key, 0) - count for key, count in held.items()}
        # What fires from a schedule is nowhere for a moment: it has to be missing twice.
        imbalance = {key: min(count, max(0, self._missing.get(key, 0))) if count > 0 else count for key, count in found.items()}
        self._missing = found
        if any(count > 0 for count in found.values()):
            self._next_look_s = SETTLE_S
        for key, count in imbalance.items():
            if count > 0 and count != self.balance.imbalance.get(key):
                log.error("conservation.broken", tenant=key[0], function=key[1], lost=count)
        self.balance = Balance(at=time.time(), open=held, imbalance=imbalance)

    async def _scheduled(self, waiting: Extent | None, functions: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """How many invocations wait in a back-off, by function."""
        if waiting is None or not waiting.messages:
            return {}
        if waiting.messages > NAMED:
            return {key: await replay.count(self._bus, subjects.SCHEDULES, subjects.retry(*key, "*")) for key in list(functions)}
        found: dict[tuple[str, str], int] = {}
        known = set(functions)
        for subject, count in (await replay.counts(self._bus, subjects.SCHEDULES, "faas.retry.>")).items():
            _, _, tenant, function, *_ = subject.split(".")
            if (tenant, function) in known:
                found[tenant, function] = found.get((tenant, function), 0) + count
        return found

    # ------------------------------------------------------------ where an event stands

    async def place(self, run: Run) -> Place:
        """Where the event of an invocation that has not ended stands. Raises BusUnavailable."""
        key = (run.tenant, run.function)
        retry_at_ms = await replay.due_ms(self._bus, subjects.SCHEDULES, subjects.retry(*key, run.invocation))
        own = [one for one in await replay.consuming(self._bus, run.stream) if (one.tenant, one.function) == key]
        delivered = any(run.sequence <= one.delivered for one in own)
        before = 0 if delivered else max(0, sum(one.pending for one in own) - 1)
        gone = not retry_at_ms and not await replay.is_there(self._bus, run.stream, run.sequence)
        return Place(delivered=delivered, before=before, retry_at_ms=retry_at_ms, served=bool(own), gone=gone)


def _unread(there: Extent | None, known: Position | None) -> int:
    if there is None:
        return 0
    sequence = known.sequence if known is not None and known.created == there.created else there.first - 1
    return max(0, there.last - max(sequence, there.first - 1))


async def _usage(entries: list[Entry]) -> Rows:
    return Rows(used=[record for entry in entries for record in reading.used(entry)])


async def _letters(entries: list[Entry]) -> Rows:
    return Rows(buried=[letter for entry in entries if (letter := reading.buried(entry)) is not None])
