"""Questions that anybody may ask this node about invocations: `runs`, what happened on the whole bus, and `why`, what this node has in its hands now.

Owns the subjects and the form of the answers. What is in the projection, in the pool and in the table of what has not ended is theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from faas import subjects
from faas.accounting.following import Follower
from faas.accounting.projection import ProjectionAbsent
from faas.bus import replay
from faas.bus.connection import ApiError, Bus, Message, Subscription
from faas.errors import BusUnavailable, FaasError
from faas.invocation import Invocation
from faas.pool.pool import WorkerPool
from faas.pool.standing import obstacle, standing_of
from faas.runs import Filter, Held, Holding, Told
from faas.tally import Snapshot, Tally
from faas.unended import Unended

log = structlog.get_logger()

QUESTION_BYTES = 4096
AT_ONCE = 16
"""Questions about runs that are answered side by side; beyond, they wait."""


class Questions:
    """`open` it; it answers until the block is left."""

    def __init__(
        self, bus: Bus, node: str, *, follower: Follower, tally: Tally, pool: WorkerPool, unended: Unended, group: asyncio.TaskGroup
    ) -> None:
        self._bus, self._node, self._follower = bus, node, follower
        self.tally, self._pool, self._unended, self._group = tally, pool, unended, group
        self._turns = asyncio.Semaphore(AT_ONCE)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, bus: Bus, node: str, *, database: Path, tally: Tally, pool: WorkerPool, unended: Unended
    ) -> AsyncIterator[Questions]:
        """`database` is where the projection is kept."""
        tasks: set[asyncio.Task[None]] = set()
        async with Follower.open(bus, database) as follower, asyncio.TaskGroup() as group:
            questions = cls(bus, node, follower=follower, tally=tally, pool=pool, unended=unended, group=group)

            def take(message: Message) -> None:
                task = group.create_task(questions._answer(message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            asked: list[Subscription] = [await bus.subscribe(subjects.node(node, question), take) for question in ("runs", "why")]
            try:
                yield questions
            finally:
                for subscription in asked:
                    await subscription.unsubscribe()
                for task in tasks:
                    task.cancel()

    async def _answer(self, message: Message) -> None:
        if not message.reply or len(message.data) > QUESTION_BYTES:
            return
        try:
            if message.subject.endswith(".why"):
                answer = msgspec.json.encode(self.holding(message.data.decode("utf-8", "replace")))
            else:
                async with self._turns:
                    answer = msgspec.json.encode(await self.told(message.data))
            await self._bus.answer(message.reply, answer)
        except FaasError as error:
            log.warning("question.not_answered", subject=message.subject, error=str(error))
        except Exception:  # whoever asks may not end the node
            log.exception("question.not_answered", subject=message.subject)

    # ------------------------------------------------------------ why: what is here now

    def holding(self, invocation_id: str) -> Holding:
        """What this node has of an invocation at this moment."""
        invocation = self._unended.find(invocation_id)
        if invocation is None or not invocation.stage:
            return Holding(node=self._node, ending=invocation is not None)
        return Holding(node=self._node, held=self._held(invocation))

    def _held(self, invocation: Invocation) -> Held:
        spec = invocation.function.spec
        waits = invocation.stage == "queued"
        since_monotonic = invocation.received_monotonic if waits else invocation.since_monotonic
        return Held(
            invocation=invocation.id,
            tenant=spec.tenant,
            function=spec.name,
            stage=invocation.stage or "queued",
            since_ms=round((time.time() - (time.monotonic() - since_monotonic)) * 1000),
            attempt=invocation.attempts + 1,
            worker="" if waits else invocation.worker,
            why=obstacle(self._pool, invocation.function.key) if waits else "",
        )

    # ------------------------------------------------------------ runs: what happened

    async def told(self, question: bytes) -> Told:
        """What the projection knows, once it has read what is on the bus by now."""
        try:
            asked = msgspec.json.decode(question or b"{}", type=Filter)
        except (msgspec.DecodeError, RecursionError) as error:
            return Told(node=self._node, absent=f"the question cannot be read: {error}")
        await self._follower.current()
        projection = self._follower.projection
        try:
            runs, more = await projection.runs(asked)
            if not asked.invocation or not runs:
                return Told(node=self._node, behind=self._follower.behind, runs=tuple(runs), more=more)
            (run,) = runs
            tries, letter = await projection.tries(run.invocation), await projection.letter(run.invocation)
        except ProjectionAbsent as absent:
            return Told(node=self._node, absent=str(absent))
        place = None
        try:
            if letter is not None and not await replay.is_there(self._bus, letter.stream, letter.sequence):
                letter = None  # it was redriven, or thrown away
            if not run.outcome and run.accepted_ms:
                place = await self._follower.place(run)
        except (BusUnavailable, ApiError) as error:
            log.warning("question.half_answered", error=str(error))
        return Told(node=self._node, behind=self._follower.behind, runs=(run,), tries=tuple(tries), letter=letter, place=place)

    # ------------------------------------------------------------ how the node stands

    @property
    def absent(self) -> str:
        """What is away and not needed, in words; "" where nothing is."""
        problem = self._follower.projection.absent
        return f"`faas runs` and `faas why` cannot be answered here: {problem}" if problem else ""

    async def snapshot(self, slots: int) -> Snapshot:
        """For whoever watches the node; what the bus alone knows is left out while it is away."""
        queued: dict[tuple[str, str], int] = {}
        for invocation in self._unended.invocations:
            if invocation.stage == "queued":
                queued[invocation.function.key] = queued.get(invocation.function.key, 0) + 1
        pending: dict[tuple[str, str], int] = {}
        if self._bus.connected:
            try:
                for one in await replay.consuming(self._bus, subjects.EVENTS):
                    pending[one.tenant, one.function] = pending.get((one.tenant, one.function), 0) + one.pending
            except BusUnavailable as error:
                log.warning("metrics.half_told", error=str(error))
        standing, balance = standing_of(self._pool), self._follower.balance
        return Snapshot(
            slots=slots,
            slots_free=standing.free,
            workers=standing.workers,
            sandboxes=standing.sandboxes,
            spares=standing.spares,
            bus_connected=self._bus.connected,
            clock_skew_s=time.time() - self._bus.now(),
            queued=queued,
            pending=pending,
            open=balance.open,
            imbalance=balance.imbalance,
            balanced_at=balance.at,
            projection_absent=bool(self._follower.projection.absent),
            projection_behind=self._follower.behind,
        )
