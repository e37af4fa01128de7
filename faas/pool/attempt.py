"""One attempt: its turn, its worker, its load and execution clocks, and the usage record that it leaves.

Every end is a value: a timeout, a crash and a refusal return an `Attempt` like a result does, so that usage is always
settled. Knows no bus: what becomes of the end is the dispatcher's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from faas.budget.prices import PriceTable
from faas.errors import ColdStartFailed, EnvironmentFailed, ProtocolError, WorkerLost
from faas.model import Ended, Event, Invocation, Phases, UsageRecord
from faas.pool.pool import Lease, WorkerPool
from faas.units import format_duration, format_size
from faas.worker import wire

DEPTH_LIMIT = 16
"""Events caused by events caused by events: beyond so many, a loop is likelier than a purpose."""

_encode_record = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Attempt:
    """How an attempt ended, and its encoded usage records; `record` is None where no worker got it."""

    ended: Ended
    phases: Phases
    record: bytes | None = None
    load_record: bytes | None = None
    drained: bool = False


@dataclass(slots=True)
class _Meter:
    """What one attempt used, gathered while it runs."""

    started_at: float
    cpu_start_us: int
    load_us: int = 0
    load_cpu_us: int = 0
    load_memory_peak_bytes: int = 0
    loaded_at: float = 0.0
    run_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0


class Attempts:
    """Runs attempts on the pool's workers. `result_limit_bytes` says what an outcome with so many records can carry."""

    def __init__(
        self, pool: WorkerPool, prices: PriceTable, *, node: str, bill_loading: bool, result_limit_bytes: Callable[[int], int]
    ) -> None:
        self._pool = pool
        self._prices = prices
        self._node = node
        self._bill_loading = bill_loading
        self._result_limit_bytes = result_limit_bytes

    async def run(self, invocation: Invocation) -> Attempt:
        """One attempt, from its place in the queue to its end. Raises Draining where the node stops before it started."""
        refusal = refusal_of(invocation)
        lease = None if refusal else self._pool.try_acquire(invocation.function.key)
        if lease is None:
            waited = refusal or await self._turn(invocation)
            if isinstance(waited, Ended):
                return Attempt(waited, Phases(queue_us=_queue_us(invocation, time.monotonic())))
            lease = waited
        with lease:
            return await self._on_worker(lease, invocation)

    async def _turn(self, invocation: Invocation) -> Lease | Ended:
        """Wait for slot and worker, until it is too late to start."""
        left_s = invocation.start_by_monotonic - time.monotonic()
        try:
            async with asyncio.timeout(left_s) as scope:
                return await self._pool.acquire(invocation.function.key)
        except TimeoutError:
            if not scope.expired():
                raise
            return _late(invocation)
        except EnvironmentFailed as error:
            return Ended(reason="environment_failed", detail=error.detail)
        except ColdStartFailed as error:
            return Ended(reason="worker_lost", detail=str(error))

    async def _on_worker(self, lease: Lease, invocation: Invocation) -> Attempt:
        leased_monotonic = time.monotonic()
        if invocation.on_leased is not None:
            invocation.on_leased()
        meter = _Meter(started_at=time.time(), cpu_start_us=lease.worker.cpu_us())
        load = None
        ended = None
        if lease.worker.version is None:
            ended = await self._load(lease, invocation, meter)
            load = ended or Ended()
        if ended is None:
            ended = await self._execute(lease, invocation, meter)
        phases = Phases(start=lease.start, queue_us=_queue_us(invocation, leased_monotonic), load_us=meter.load_us, run_us=meter.run_us)
        return Attempt(
            ended,
            phases,
            record=self._record(lease, invocation, phases, ended, meter),
            load_record=None if load is None else self._load_record(lease, invocation, phases, load, meter),
            drained=lease.drained,
        )

    # ------------------------------------------------------------ the two clocks on a worker

    async def _load(self, lease: Lease, invocation: Invocation, meter: _Meter) -> Ended | None:
        """Import the handler and run its `load`, under the loading clock; None where that went well."""
        function, worker = invocation.function, lease.worker
        began = time.monotonic()
        limit_s = min(function.spec.limits.load_timeout_s, invocation.deadline_monotonic - began)
        try:
            async with asyncio.timeout(limit_s) as scope:
                answer = await worker.load(self._pool.load_message(function))
        except TimeoutError:
            if not scope.expired():
                raise
            meter.load_cpu_us = worker.cpu_us() - meter.cpu_start_us
            meter.load_memory_peak_bytes = worker.memory_peak_bytes()
            worker.kill()  # an import cannot be interrupted
            return Ended(reason="load_timeout", detail=f"not loaded within {format_duration(limit_s)}")
        except (WorkerLost, ProtocolError) as error:
            meter.load_cpu_us = worker.cpu_us() - meter.cpu_start_us
            meter.load_memory_peak_bytes = worker.memory_peak_bytes()
            return _crash(error, "while loading")
        finally:
            meter.load_us = round((time.monotonic() - began) * 1e6)
            meter.loaded_at = time.time()
        meter.load_cpu_us, meter.load_memory_peak_bytes = answer.cpu_us, answer.memory_peak_bytes
        if isinstance(answer, wire.LoadFailed):
            return Ended(reason="load_error", detail=answer.detail, traceback=answer.traceback)
        return None

    async def _execute(self, lease: Lease, invocation: Invocation, meter: _Meter) -> Ended:
        """Run `handle` once under the execution clock and what is left of the deadline."""
        worker = lease.worker
        began = time.monotonic()
        left_s = invocation.deadline_monotonic - began
        if left_s <= 0:
            lease.clean = True
            return Ended(reason="timeout", detail="the deadline passed while the function loaded")
        limit_s = min(invocation.timeout_s, left_s)
        cpu_start_us = worker.cpu_us()
        try:
            async with asyncio.timeout(limit_s) as scope:
                answer = await worker.invoke(_invoke(invocation, left_s))
        except TimeoutError:
            if not scope.expired():
                raise
            ended = Ended(reason="timeout", detail=f"still running after {format_duration(limit_s)}")
        except (WorkerLost, ProtocolError) as error:
            ended = _crash(error, "while running")
        else:
            lease.clean = True
            meter.run_us, meter.cpu_us, meter.memory_peak_bytes = answer.run_us, answer.cpu_us, answer.memory_peak_bytes
            return self._judge(answer, invocation)
        meter.run_us = round((time.monotonic() - began) * 1e6)
        meter.cpu_us = max(0, worker.cpu_us() - cpu_start_us)
        meter.memory_peak_bytes = worker.memory_peak_bytes()
        worker.kill()  # after its clocks were read; Python cannot interrupt native code, so the process goes
        return ended

    def _judge(self, answer: wire.Result | wire.Failed, invocation: Invocation) -> Ended:
        if isinstance(answer, wire.Failed):
            return Ended(reason=answer.reason, detail=answer.detail, traceback=answer.traceback, retry_after_s=answer.retry_after_s)
        limit_bytes = self._result_limit_bytes(invocation.attempts + 1)
        if len(answer.body) > limit_bytes:
            return Ended(
                reason="result_too_large",
                detail=f"the result has {format_size(len(answer.body))}; the bus carries {format_size(limit_bytes)}",
            )
        return Ended(body=answer.body, content_type=answer.content_type)

    # ------------------------------------------------------------ records

    def _record(self, lease: Lease, invocation: Invocation, phases: Phases, ended: Ended, meter: _Meter) -> bytes:
        memory_bytes, cpus, _ = lease.served.limits
        cost = self._prices.cost_nanousd(cpu_us=meter.cpu_us, memory_byte_us=meter.memory_peak_bytes * meter.run_us)
        reserved = self._prices.reserved_nanousd(timeout_s=invocation.timeout_s, cpus=cpus, memory_bytes=memory_bytes)
        return _encode_record(
            UsageRecord(
                record_id=f"{invocation.id}.{invocation.attempts + 1}",
                kind="attempt",
                billable=not lease.drained,
                invocation_id=invocation.id,
                attempt=invocation.attempts + 1,
                tenant=invocation.function.spec.tenant,
                function=invocation.function.spec.name,
                version=invocation.function.version,
                environment=lease.environment.digest,
                tags=invocation.function.spec.tags,
                node=self._node,
                outcome=ended.outcome,
                reason=ended.reason,
                started_at=_rfc3339(meter.started_at),
                ended_at=_rfc3339(time.time()),
                start=phases.start,
                queue_us=phases.queue_us,
                load_us=phases.load_us,
                run_us=phases.run_us,
                cpu_us=meter.cpu_us,
                memory_peak_bytes=meter.memory_peak_bytes,
                memory_byte_us=meter.memory_peak_bytes * meter.run_us,
                bytes_in=len(invocation.event.data),
                bytes_out=len(ended.body),
                cost_nanousd=min(cost, reserved),
                price_version=self._prices.version,
            )
        )

    def _load_record(self, lease: Lease, invocation: Invocation, phases: Phases, ended: Ended, meter: _Meter) -> bytes:
        """Loading is a record of its own: it costs only where `bill_loading` says so, and never makes a cold start dearer than a warm one."""
        cost = self._prices.cost_nanousd(cpu_us=meter.load_cpu_us, memory_byte_us=0) if self._bill_loading else 0
        return _encode_record(
            UsageRecord(
                record_id=f"{invocation.id}.{invocation.attempts + 1}.load",
                kind="load",
                billable=self._bill_loading,
                invocation_id=invocation.id,
                attempt=invocation.attempts + 1,
                tenant=invocation.function.spec.tenant,
                function=invocation.function.spec.name,
                version=invocation.function.version,
                environment=lease.environment.digest,
                tags=invocation.function.spec.tags,
                node=self._node,
                outcome=ended.outcome,
                reason=ended.reason,
                started_at=_rfc3339(meter.started_at),
                ended_at=_rfc3339(meter.loaded_at),
                start=phases.start,
                queue_us=phases.queue_us,
                load_us=phases.load_us,
                run_us=0,
                cpu_us=meter.load_cpu_us,
                memory_peak_bytes=meter.load_memory_peak_bytes,
                memory_byte_us=0,
                bytes_in=0,
                bytes_out=0,
                cost_nanousd=cost,
                price_version=self._prices.version,
            )
        )


def refusal_of(invocation: Invocation) -> Ended | None:
    """Why an invocation is not even queued, or None."""
    if invocation.control.depth > DEPTH_LIMIT:
        return Ended(
            reason="depth",
            detail=f"the event is the {invocation.control.depth}th in a chain of events that cause events; {DEPTH_LIMIT} at most",
        )
    limit_bytes = invocation.function.spec.limits.payload_bytes
    if len(invocation.event.data) > limit_bytes:
        return Ended(
            reason="payload_too_large",
            detail=f"the payload has {format_size(len(invocation.event.data))}; limits.payload of the function is {format_size(limit_bytes)}",
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
    )


def _queue_us(invocation: Invocation, now_monotonic: float) -> int:
    return invocation.waited_us + round((now_monotonic - invocation.received_monotonic) * 1e6)


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
