"""One attempt: its turn, its worker, its load and execution clocks, and the usage record that it leaves.

Every end is a value: a timeout, a crash and a refusal return an `Attempt` like a result does, so that usage is always
settled. Knows no bus: what becomes of the end is the dispatcher's.
"""

from __future__ import annotations

import asyncio
import time

from faas.bus.speech import Speech
from faas.errors import ColdStartFailed, EnvironmentFailed, ProtocolError, SecretMissing, WorkerLost
from faas.invocation import Invocation
from faas.model import Ended, Event, Phases
from faas.pool.hearing import Hearing
from faas.pool.large import LargeBodies
from faas.pool.lease import Draining, Lease
from faas.pool.metering import Attempted, Billing, Meter
from faas.pool.output import Speaker
from faas.pool.pool import WorkerPool
from faas.pool.worker import OnSaid, Worker
from faas.security.tenants import Tenants
from faas.tally import Tally
from faas.units import format_above, format_duration
from faas.worker import wire

COLD_STARTS = 3
"""No function ran where a worker did not start, so it is tried again at once: a zygote may have been killed for another's memory."""

DEPTH_LIMIT = 16
"""Events caused by events caused by events: beyond so many, a loop is likelier than a purpose."""


CANCEL_GRACE_S = 2.0
"""Between a handler's being asked to stop and its worker's being killed."""
CANCELLED = Ended(reason="cancelled", detail="somebody cancelled it")


class Attempt:
    """How an attempt ended. `record` and `load_record` are None where no worker got it; both are made when first asked for."""

    __slots__ = ("_attempted", "_billing", "_record", "drained", "ended", "phases")

    def __init__(self, ended: Ended, phases: Phases, *, attempted: Attempted | None = None, billing: Billing | None = None) -> None:
        self.ended, self.phases = ended, phases
        self.drained = attempted is not None and attempted.drained
        self._attempted, self._billing = attempted, billing
        self._record: bytes | None = None

    @property
    def measured(self) -> bool:
        """Whether a worker got it, so that it counts and leaves a record."""
        return self._attempted is not None

    @property
    def record(self) -> bytes | None:
        """The encoded usage record of the attempt; the same bytes however often it is asked for."""
        if self._record is None and self._attempted is not None and self._billing is not None:
            self._record = self._billing.record(self._attempted)
        return self._record

    @property
    def load_record(self) -> bytes | None:
        """The encoded usage record of the load that it waited for; None where its worker was warm."""
        if self._attempted is None or self._billing is None:
            return None
        return self._billing.load_record(self._attempted)


class Attempts:
    """Runs attempts on the pool's workers."""

    def __init__(self, pool: WorkerPool, billing: Billing, speech: Speech, *, tally: Tally, large: LargeBodies, tenants: Tenants) -> None:
        self._pool, self._billing, self._speech, self._large = pool, billing, speech, large
        self.tally, self.tenants = tally, tenants

    async def run(self, invocation: Invocation) -> Attempt:
        """One attempt, from its place in the queue to its end. Raises Draining where the node stops before it started."""
        invocation.stage = "queued"
        try:
            return await self._attempt(invocation)
        except Draining:
            self.tally.given_back += 1
            raise
        finally:
            invocation.stage = ""

    async def _attempt(self, invocation: Invocation) -> Attempt:
        if invocation.event.dataref:
            return await self._attempt_claimed(invocation)
        refusal = CANCELLED if invocation.cancelled else refusal_of(invocation)
        lease = None if refusal else self._pool.try_acquire(invocation.function.key)
        if lease is None:
            waited = refusal or await self._turn(invocation)
            if isinstance(waited, Ended):
                return Attempt(waited, Phases(queue_us=_queue_us(invocation, time.monotonic())))
            lease = waited
        with lease:
            return await self._on_worker(lease, invocation)

    async def _attempt_claimed(self, invocation: Invocation) -> Attempt:
        """The same for a payload in the object store: looked up before its turn, brought to its worker when that is there."""
        refusal = await self._large.find(invocation) or refusal_of(invocation)
        waited = CANCELLED if invocation.cancelled else refusal or await self._turn(invocation)
        if isinstance(waited, Ended):
            return Attempt(waited, Phases(queue_us=_queue_us(invocation, time.monotonic())))
        with waited as lease, self._large.place(invocation, lease.worker):
            lease.clean = True  # whatever happens before its worker has been given anything
            try:
                async with asyncio.timeout(invocation.start_by_monotonic - time.monotonic()) as scope:
                    invocation.on_cancel = lambda: scope.reschedule(0)
                    refusal = await self._large.bring(invocation, lease.worker)
            except TimeoutError:
                if not scope.expired():
                    raise
                refusal = CANCELLED if invocation.cancelled else _late(invocation)
            finally:
                invocation.on_cancel = None
            if refusal is not None:
                return Attempt(refusal, Phases(queue_us=_queue_us(invocation, time.monotonic())))
            lease.clean = False
            return await self._on_worker(lease, invocation)

    async def _turn(self, invocation: Invocation) -> Lease | Ended:
        """Wait for slot and worker, until it is too late to start."""
        left_s = invocation.start_by_monotonic - time.monotonic()
        tries = COLD_STARTS
        try:
            async with asyncio.timeout(left_s) as scope:
                invocation.on_cancel = lambda: scope.reschedule(0)
                while True:
                    tries -= 1
                    try:
                        return await self._pool.acquire(invocation.function.key)
                    except ColdStartFailed as error:
                        if not tries:
                            return Ended(reason="worker_lost", detail=str(error))
        except TimeoutError:
            if not scope.expired():
                raise
            return CANCELLED if invocation.cancelled else _late(invocation)
        except EnvironmentFailed as error:
            return Ended(reason="environment_failed", detail=error.detail)
        finally:
            invocation.on_cancel = None

    async def _on_worker(self, lease: Lease, invocation: Invocation) -> Attempt:
        leased_monotonic = time.monotonic()
        invocation.function = lease.served.function  # another version than it came for, where one was deployed while it waited
        if invocation.on_leased is not None:
            invocation.on_leased()
        spec = invocation.function.spec
        invocation.stage, invocation.worker, invocation.since_monotonic = "running", lease.worker.id, leased_monotonic
        lease.worker.speak_for(Speaker(spec.tenant, spec.name, invocation.id, invocation.attempts + 1))
        meter = Meter(started_at=time.time())
        loaded = None
        ended = None
        with _Stop(invocation, lease.worker):
            if lease.worker.version is None:
                invocation.stage = "loading"
                ended = await self._load(lease, invocation, meter)
                invocation.stage, invocation.since_monotonic = "running", time.monotonic()
                loaded = ended or Ended()
            if ended is None:
                ended = await self._execute(lease, invocation, meter)
        if invocation.cancelled:
            ended = CANCELLED
        meter.ended_at = meter.started_at + time.monotonic() - leased_monotonic
        phases = Phases(start=lease.start, queue_us=_queue_us(invocation, leased_monotonic), load_us=meter.load_us, run_us=meter.run_us)
        self.tally.attempt(invocation.function.key, phases, ended.reason, cpu_us=meter.cpu_us, memory_bytes=meter.memory_peak_bytes)
        memory_bytes, cpus, _ = lease.served.limits
        attempted = Attempted(
            invocation=invocation,
            number=invocation.attempts + 1,
            environment=lease.environment,
            cpus=cpus,
            memory_bytes=memory_bytes,
            phases=phases,
            ended=ended,
            loaded=loaded,
            meter=meter,
            drained=lease.drained and not lease.clean,  # an answer that was there before the kill stands
        )
        return Attempt(ended, phases, attempted=attempted, billing=self._billing)

    async def forget(self, invocation: Invocation, outcome: str) -> None:
        """It has ended, and that is told: what the object store held for it alone may go."""
        if invocation.event.dataref and outcome in ("succeeded", "cancelled"):  # any other end may be redriven
            await self._large.forget(invocation)

    # ------------------------------------------------------------ the two clocks on a worker

    async def _load(self, lease: Lease, invocation: Invocation, meter: Meter) -> Ended | None:
        """Import the handler and run its `load`, under the loading clock; None where that went well."""
        function, worker = invocation.function, lease.worker
        began, cpu_start_us = time.monotonic(), worker.cpu_us()
        limit_s = min(function.spec.limits.load_timeout_s, invocation.deadline_monotonic - began)
        try:
            answer = await self._pool.load(lease.served, worker, timeout_s=max(0.0, limit_s))
        except TimeoutError:
            meter.load_cpu_us, meter.load_memory_peak_bytes = worker.cpu_us() - cpu_start_us, worker.memory_peak_bytes()
            worker.kill()  # an import cannot be interrupted
            return Ended(reason="load_timeout", detail=f"not loaded within {format_duration(limit_s)}")
        except SecretMissing as error:  # it went away since its turn came
            return Ended(reason="environment_failed", detail=error.detail)
        except (WorkerLost, ProtocolError) as error:
            meter.load_cpu_us, meter.load_memory_peak_bytes = worker.cpu_us() - cpu_start_us, worker.memory_peak_bytes()
            return _crash(error, "while loading")
        finally:
            meter.load_us = round((time.monotonic() - began) * 1e6)
            meter.loaded_at = meter.started_at + time.monotonic() - began
        meter.load_cpu_us, meter.load_memory_peak_bytes = answer.cpu_us, answer.memory_peak_bytes
        if isinstance(answer, wire.LoadFailed):
            return Ended(reason="load_error", detail=answer.detail, traceback=answer.traceback)
        return None

    async def _execute(self, lease: Lease, invocation: Invocation, meter: Meter) -> Ended:
        """Run `handle` once, and wait until all that it says is on the bus."""
        hearing = Hearing(self._speech, lease.worker, invocation=invocation, meter=meter, tenants=self.tenants)
        try:
            return await hearing.end(await self._run(lease, invocation, meter, on_said=hearing.hear))
        finally:
            hearing.close()

    async def _run(self, lease: Lease, invocation: Invocation, meter: Meter, *, on_said: OnSaid) -> Ended:
        """Under the execution clock and what is left of the deadline."""
        worker = lease.worker
        began = time.monotonic()
        left_s = invocation.deadline_monotonic - began
        if left_s <= 0:
            lease.clean = True
            return Ended(reason="timeout", detail="the deadline passed while the function loaded")
        limit_s = min(invocation.timeout_s, left_s)
        cpu_start_us = worker.cpu_us()
        try:
            answer = await worker.invoke(_invoke(invocation, left_s), timeout_s=limit_s, on_said=on_said)
        except TimeoutError:
            ended = Ended(reason="timeout", detail=f"still running after {format_duration(limit_s)}")
        except (WorkerLost, ProtocolError) as error:
            ended = _crash(error, "while running")
        else:
            lease.clean = True
            elapsed_us = round((time.monotonic() - began) * 1e6)  # a worker's word on its time is taken up to what passed here
            meter.run_us, meter.cpu_us, meter.memory_peak_bytes = min(answer.run_us, elapsed_us), answer.cpu_us, answer.memory_peak_bytes
            meter.meters = answer.meters
            if isinstance(answer, wire.Failed):
                return Ended(reason=answer.reason, detail=answer.detail, traceback=answer.traceback, retry_after_s=answer.retry_after_s)
            return self._large.inline(answer, invocation) or await self._large.kept(answer, invocation, worker)
        meter.run_us = round((time.monotonic() - began) * 1e6)
        meter.cpu_us = max(0, worker.cpu_us() - cpu_start_us)
        meter.memory_peak_bytes = worker.memory_peak_bytes()
        worker.kill()  # after its clocks were read; Python cannot interrupt native code, so the process goes
        return ended


class _Stop:
    """While it runs, cancelling asks its handler to stop, and kills the worker of one that does not."""

    __slots__ = ("_invocation", "_timers", "_worker")

    def __init__(self, invocation: Invocation, worker: Worker) -> None:
        self._invocation, self._worker = invocation, worker
        self._timers: tuple[asyncio.TimerHandle, ...] = ()

    def __enter__(self) -> None:
        self._invocation.on_cancel = self._stop
        if self._invocation.cancelled:
            self._stop()

    def _stop(self) -> None:
        self._worker.interrupt()
        self._timers += (asyncio.get_running_loop().call_later(CANCEL_GRACE_S, self._worker.kill),)

    def __exit__(self, *_: object) -> None:
        self._invocation.on_cancel = None
        for timer in self._timers:
            timer.cancel()


def refusal_of(invocation: Invocation) -> Ended | None:
    """Why an invocation is not even queued, or None."""
    if invocation.control.depth > DEPTH_LIMIT:
        return Ended(
            reason="depth",
            detail=f"the event is the {invocation.control.depth}th in a chain of events that cause events; {DEPTH_LIMIT} at most",
        )
    limit_bytes = invocation.function.spec.limits.payload_bytes
    if invocation.payload_bytes > limit_bytes:
        return Ended(
            reason="payload_too_large",
            detail="the payload has {}; limits.payload of the function is {}".format(*format_above(invocation.payload_bytes, limit_bytes)),
        )
    if time.monotonic() >= invocation.start_by_monotonic:
        return _late(invocation)
    return None


def _late(invocation: Invocation) -> Ended:
    if invocation.late_reason == "deadline":
        return Ended(reason="deadline", detail="the deadline passed before a worker was free")
    return Ended(reason="queue_timeout", detail="it waited longer than it may before a worker was free")


def _crash(error: WorkerLost | ProtocolError, when: str) -> Ended:
    if isinstance(error, WorkerLost):
        return Ended(reason="oom" if error.oom else "worker_lost", detail=f"the worker {error.exit} {when}")
    return Ended(reason="protocol_error", detail=f"{error} {when}")


def _invoke(invocation: Invocation, left_s: float) -> wire.Invoke:
    event: Event = invocation.event
    return wire.Invoke(
        invocation_id=invocation.id,
        attempt=invocation.attempts + 1,
        remaining_s=min(left_s, invocation.timeout_s),
        id=event.id,
        source=event.source,
        event_type=event.type,
        subject=event.subject,
        time=event.time,
        datacontenttype=event.datacontenttype,
        dataschema=event.dataschema,
        extensions=event.extensions,
        data=event.data,
        stream=bool(invocation.control.chunk_to),
        file=invocation.payload_file,
    )


def _queue_us(invocation: Invocation, now_monotonic: float) -> int:
    return invocation.waited_us + round((now_monotonic - invocation.received_monotonic) * 1e6)
