"""Slots, and the warm workers of every function: who may start now, on which worker, and what becomes of the worker after.

Owns the count of attempts at once on this node, the fair queue for it, and idle workers; how long they stay is `warmth`'s.
Knows no event, no outcome and no bus. Giving back is synchronous, so that a release can never itself be cancelled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import structlog

from faas.config import PoolConfig
from faas.errors import FaasError, SecretMissing
from faas.model import FunctionVersion, RuntimeProfile, Start
from faas.pool.backend import Backend
from faas.pool.grants import Grants
from faas.pool.lease import Draining, Lease, Schemas, Seen, Served, Stage, confide, load_message
from faas.pool.overlays import BuildOverlay, Overlay
from faas.pool.sandboxes import Build, Sandboxes
from faas.pool.warmth import Warmth, retire_all, unbind
from faas.pool.worker import Worker
from faas.scheduling.fair_queue import Bill, FairQueue, Flow
from faas.worker import wire

log = structlog.get_logger()

CLOSE_S = 0.5
"""How long `close` of idle workers may take when the node stops."""

HOLD_WEIGHT = 0.1
"""Of the newest attempt in the moving average of what an attempt of the function takes."""


class WorkerPool:
    """`open` it, `serve` functions, then `try_acquire` or `acquire` a lease for each attempt."""

    def __init__(
        self,
        config: PoolConfig,
        backend: Backend,
        build: Build,
        *,
        build_overlay: BuildOverlay | None,
        stage: Stage | None,
        grants: Grants,
        group: asyncio.TaskGroup,
    ) -> None:
        self._free = self._slots = config.slots_or_default
        self._backend, self._build, self._build_overlay, self._group = backend, build, build_overlay, group
        self._stage, self._grants = stage, grants
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._profiles: dict[str, Sandboxes] = {}
        self._served: dict[Flow, Served] = {}
        self._queue: FairQueue[asyncio.Future[Served]] = FairQueue()
        self._leases: set[Lease] = set()
        self._warmth = Warmth(self._served)
        self._draining = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: PoolConfig,
        backend: Backend,
        build: Build,
        *,
        build_overlay: BuildOverlay | None = None,
        stage: Stage | None = None,
        grants: Grants | None = None,
    ) -> AsyncIterator[WorkerPool]:
        """Without `build_overlay` a function's own packages are taken to be in its profile's environment; without `grants` there are no secrets."""
        async with asyncio.TaskGroup() as group:
            pool = cls(config, backend, build, build_overlay=build_overlay, stage=stage, grants=grants or Grants(), group=group)
            pool._spawn(pool._warmth.watch_secrets(pool._keep_warm))
            try:
                yield pool
            finally:
                await pool._close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run the pool's own background work; it ends with the pool."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ functions

    def serve(self, function: FunctionVersion, profile: RuntimeProfile, *, eager: bool) -> None:
        """Take up a function, or another version of one: what runs on the old one ends there, what waits gets the new one.

        `eager` builds its environment and keeps sandboxes warm from now on; else its first event does.
        """
        sandboxes = self._profiles.get(profile.name)
        if sandboxes is None:
            sandboxes = Sandboxes(
                profile,
                self._backend,
                self._build,
                spawn=self._spawn,
                evict=self._warmth.evict,
                evictable=self._warmth.evictable,
                changed=self._hand_out,
            )
            self._profiles[profile.name] = sandboxes
        wanted, bound = function.spec.limits, profile.limits
        limits = (min(wanted.memory_bytes, bound.memory_bytes), min(wanted.cpus, bound.cpus), min(wanted.pids, bound.pids))
        overlay = None
        if function.lock and self._build_overlay is not None:
            overlay = Overlay(function, profile, self._build_overlay, spawn=self._spawn)
        served = Served(function, sandboxes, limits, overlay, self._stage, self._grants)
        before, self._served[function.key] = self._served.get(function.key), served
        if before is not None:
            served.waiting = before.waiting
            self._leave(before)
            self._hand_out()
        if eager or function.spec.scale.min_warm:
            self._spawn(self._warm_up(served))

    def withdraw(self, flow: Flow) -> None:
        """Start nothing more of a function: whoever waits gets Draining, what runs ends as it would."""
        served = self._served.pop(flow, None)
        if served is not None:
            for turn in [turn for turn in served.waiting if not turn.done()]:
                self._queue.remove(flow, turn)
                turn.set_exception(Draining("the function was withdrawn"))
            self._leave(served)

    def _leave(self, served: Served) -> None:
        served.left = True
        if not served.leased:
            self._release_promise(served)
            unbind(served)

    async def _warm_up(self, served: Served) -> None:
        try:
            await served.ready()
        except FaasError as error:
            if isinstance(error, SecretMissing):  # all else is said where it failed
                log.warning("secret.missing", function=served.function.spec.name, error=str(error))
            return  # an event will ask again
        for _ in range(served.function.spec.scale.min_warm):
            self._prewarm(served)

    @property
    def building(self) -> tuple[str, ...]:
        """Profiles, and functions with packages of their own, whose environment is not there yet."""
        profiles = [name for name, sandboxes in self._profiles.items() if sandboxes.environment is None]
        overlays = [name for (_, name), served in self._served.items() if served.overlay and served.overlay.environment is None]
        return tuple(sorted([*profiles, *overlays]))

    def appetite(self, flow: Flow, *, promised: int = 0) -> int:
        """How many events of the function this node can use soon, at least one: free slots, and AHEAD_S worth of what its attempts take.

        `promised` is for how many slots other functions have asked already.
        """
        served = self._served.get(flow)
        return served.appetite(self._free - promised) if served is not None else 0  # withdrawn in this moment

    # ------------------------------------------------------------ leases

    def try_acquire(self, flow: Flow) -> Lease | None:
        """A lease on an idle worker, if there are one and a slot; without a wait. Others that wait with a slot free could not start."""
        served = self._served.get(flow)
        if served is None or flow in self._queue or self._free <= 0 or self._draining:
            return None
        worker = served.pop_idle()
        if worker is None:
            return None
        self._free -= 1
        served.leased += 1
        self._queue.pass_by(flow, served.bill)
        return self._lease(served, worker, "warm")

    async def acquire(self, flow: Flow) -> Lease:
        """A lease, when it is the function's turn. Raises EnvironmentFailed, ColdStartFailed, Draining; cancelling it gives up the place."""
        cold = await self._still(flow).ready()
        asked = served = self._still(flow)
        turn: asyncio.Future[Served] = self._loop.create_future()
        (waiting := served.waiting).add(turn)
        self._queue.put(flow, turn)
        self._hand_out()
        try:
            served = await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._return_slot(turn.result())  # granted in the same moment
            else:
                self._queue.remove(flow, turn)
            raise
        finally:
            waiting.discard(turn)
        try:
            if served is not asked:  # a version that came while it waited
                cold = await served.ready() or cold
            worker, start = await self._worker(served)
        except BaseException:
            self._return_slot(served)
            raise
        if self._draining:
            worker.kill()
            self._return_slot(served)
            raise Draining("the node stops")
        return self._lease(served, worker, "cold" if cold and start != "warm" else start)

    def _still(self, flow: Flow) -> Served:
        """What is served of a function. Raises Draining where that is nothing, or the node stops."""
        served = self._served.get(flow)
        if served is None or self._draining:
            raise Draining("the node stops" if served is not None else "the function was withdrawn")
        return served

    def _lease(self, served: Served, worker: Worker, start: Start) -> Lease:
        worker.lease()
        lease = Lease(self.release, served, worker, start, time.monotonic())
        self._leases.add(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """Give back a lease: its worker is idle after a clean end, else killed; its slot goes to whose turn it is."""
        served, worker = lease.served, lease.worker
        self._leases.discard(lease)
        hold_s = time.monotonic() - lease.since_monotonic
        served.hold_s = hold_s if math.isinf(served.hold_s) else served.hold_s + HOLD_WEIGHT * (hold_s - served.hold_s)
        if lease.clean and worker.give_back() and not self._draining:
            served.idle.append(worker)
            self._warmth.look_at(worker.idle_since_monotonic + served.function.spec.scale.keep_alive_s)
        else:
            worker.kill()
        self._return_slot(served)
        self._keep_warm(served)

    def _return_slot(self, served: Served) -> None:
        self._free += 1
        served.leased -= 1
        served.idle_since_monotonic = time.monotonic()
        if not served.leased:
            self._release_promise(served)
            if served.left:
                unbind(served)
            elif not served.idle and served.sandbox is not None:
                self._warmth.look_at(served.idle_since_monotonic + served.sandboxes.profile.pool.keep_alive_s)
        if self._queue:
            self._hand_out()
        elif self._free == self._slots:
            self._queue.rest()

    def _release_promise(self, served: Served) -> None:
        if served.promised:
            served.promised = False
            served.sandboxes.promised -= 1

    def _hand_out(self) -> None:
        while self._free > 0 and not self._draining:
            flow, turn = self._queue.take(self._may_start, self._bill) or (None, None)
            if flow is None or turn is None:
                return
            if turn.done():
                continue  # it was given up in this moment, and takes itself out
            served = self._served[flow]
            self._free -= 1
            served.leased += 1
            if not served.idle and not served.promised and not served.bound:
                served.promised = True
                served.sandboxes.promised += 1
            turn.set_result(served)

    def _may_start(self, flow: Flow) -> bool:
        served = self._served.get(flow)
        if served is None:
            return False  # withdrawn in the moment in which its last turn was given up, which takes itself out
        if served.leased >= served.function.spec.scale.max_workers:
            return False
        return bool(served.idle) or served.bound or served.promised or served.sandboxes.has_room

    def _bill(self, flow: Flow) -> Bill:
        return self._served[flow].bill

    async def _worker(self, served: Served) -> tuple[Worker, Start]:
        worker = served.pop_idle()
        if worker is not None:
            return worker, "warm"
        async with served.binding:  # two attempts at once must not bind two sandboxes
            sandbox = served.sandbox
            if sandbox is None or not sandbox.alive:
                unbind(served)
                self._release_promise(served)  # `take` counts it from here on
                sandbox, worker, start = await served.sandboxes.take()
                served.sandbox = sandbox
                return self._own(served, worker), start
        return self._own(served, await sandbox.fork()), "fork"

    def _own(self, served: Served, worker: Worker) -> Worker:
        memory_bytes, cpus, pids = served.limits
        worker.limit(memory_bytes=memory_bytes, cpus=cpus, pids=pids)
        worker.on_lost = lambda lost: self._lost(served, lost)
        return worker

    def _lost(self, served: Served, worker: Worker) -> None:
        if worker in served.idle:
            served.idle.remove(worker)
            log.warning("worker.lost", function=served.function.spec.name, worker=worker.id, idle=True)
            self._keep_warm(served)

    # ------------------------------------------------------------ loading

    def load_message(self, function: FunctionVersion) -> wire.Load:
        """What makes a spare a worker of a function that is served."""
        return load_message(self._served[function.key])

    async def load(self, served: Served, worker: Worker, *, timeout_s: float) -> wire.Loaded | wire.LoadFailed:
        """Make a spare a worker of the function, and keep what it says of its types. Raises SecretMissing, and as `Worker.load` does."""
        answer = await worker.load(confide(served, worker), timeout_s=timeout_s)
        if isinstance(answer, wire.Loaded):
            served.schemas = Schemas.of(answer)
        return answer

    def seen(self, flow: Flow) -> Seen:
        """What is known of a function beyond its declaration: its environment once it is built, its types once a worker has loaded it."""
        return self._served[flow].seen

    def _keep_warm(self, served: Served) -> None:
        if (
            not self._draining
            and not served.left
            and len(served.idle) + served.leased + served.prewarming < served.function.spec.scale.min_warm
        ):
            self._prewarm(served)

    def _prewarm(self, served: Served) -> None:
        served.prewarming += 1
        self._spawn(self._load_ahead(served))

    async def _load_ahead(self, served: Served) -> None:
        """Load one worker before any event asks for it; a failure is logged, and the next event tries again."""
        function = served.function
        worker: Worker | None = None
        try:
            worker, start = await self._worker(served)
            if start == "warm":
                served.idle.append(worker)
                return
            loaded = await self.load(served, worker, timeout_s=function.spec.limits.load_timeout_s)
        except (FaasError, TimeoutError) as error:
            log.warning("worker.not_prewarmed", function=function.spec.name, error=str(error) or "load_timeout")
            if worker is not None:
                worker.kill()
            return
        finally:
            served.prewarming -= 1
        if served.left and not served.leased:
            unbind(served)
        if isinstance(loaded, wire.Loaded) and not self._draining and not served.left:
            served.idle.append(worker)
            self._hand_out()
        else:
            log.warning("worker.not_prewarmed", function=function.spec.name, error=getattr(loaded, "detail", "draining"))
            worker.kill()

    # ------------------------------------------------------------ stopping

    def drain(self) -> None:
        """Start nothing more: everyone who waits for a worker gets Draining. What runs goes on."""
        self._draining = True
        stopping = Draining("the node stops")
        for sandboxes in self._profiles.values():
            sandboxes.abandon(stopping)
        for served in self._served.values():
            if served.overlay is not None:
                served.overlay.abandon(stopping)
        for turn in self._queue.clear():
            if not turn.done():
                turn.set_exception(Draining("the node stops"))

    def kill_leased(self) -> int:
        """The shutdown grace ran out: kill the workers of all running attempts; how many."""
        for lease in self._leases:
            lease.drained = True
            lease.worker.kill()
        return len(self._leases)

    async def _close(self) -> None:
        """Let idle workers run their handler's `close` within CLOSE_S, then end everything."""
        self.drain()
        self._warmth.stop()
        for task in self._tasks:
            task.cancel()
        idle = [worker for served in self._served.values() for worker in served.idle]
        if idle:
            await retire_all(idle, within_s=CLOSE_S)
        for served in self._served.values():
            if served.sandbox is not None:
                served.sandbox.kill()
        for sandboxes in self._profiles.values():
            sandboxes.kill()
