"""What an attempt used, and the usage records made of it. Knows prices and no bus.

A record is made when it is first asked for: a synchronous answer goes out before its record is written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from faas.budget.prices import PriceTable
from faas.model import Ended, Environment, Invocation, Phases, UsageRecord

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Meter:
    """Clocks and counters of one attempt, filled while it runs. Moments are seconds since the epoch."""

    started_at: float
    ended_at: float = 0.0
    load_us: int = 0
    load_cpu_us: int = 0
    load_memory_peak_bytes: int = 0
    loaded_at: float = 0.0
    run_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0


@dataclass(slots=True)
class Attempted:
    """What the records of one attempt are made of, taken down at its end."""

    invocation: Invocation
    number: int
    environment: Environment
    cpus: float
    memory_bytes: int
    phases: Phases
    ended: Ended
    loaded: Ended | None  # how its load ended; None where its worker was warm
    meter: Meter
    drained: bool


class Billing:
    """Makes usage records at the prices of one table."""

    def __init__(self, prices: PriceTable, *, node: str, bill_loading: bool) -> None:
        self._prices, self._node, self._bill_loading = prices, node, bill_loading

    def record(self, attempted: Attempted) -> bytes:
        """The encoded record of the attempt. Its cost never exceeds what its timeout, CPUs and memory reserve."""
        meter, ended, invocation = attempted.meter, attempted.ended, attempted.invocation
        memory_byte_us = meter.memory_peak_bytes * meter.run_us
        reserved = self._prices.reserved_nanousd(timeout_s=invocation.timeout_s, cpus=attempted.cpus, memory_bytes=attempted.memory_bytes)
        cost = min(reserved, self._prices.cost_nanousd(cpu_us=meter.cpu_us, memory_byte_us=memory_byte_us))
        spec, phases = invocation.function.spec, attempted.phases
        return _encode(
            UsageRecord(
                record_id=f"{invocation.id}.{attempted.number}",
                kind="attempt",
                billable=not attempted.drained,
                invocation_id=invocation.id,
                attempt=attempted.number,
                tenant=spec.tenant,
                function=spec.name,
                version=invocation.function.version,
                environment=attempted.environment.digest,
                tags=spec.tags,
                node=self._node,
                outcome=ended.outcome,
                reason=ended.reason,
                started_at=_rfc3339(meter.started_at),
                ended_at=_rfc3339(meter.ended_at),
                start=phases.start,
                queue_us=phases.queue_us,
                load_us=phases.load_us,
                run_us=phases.run_us,
                cpu_us=meter.cpu_us,
                memory_peak_bytes=meter.memory_peak_bytes,
                memory_byte_us=memory_byte_us,
                bytes_in=len(invocation.event.data),
                bytes_out=len(ended.body),
                cost_nanousd=cost,
                price_version=self._prices.version,
            )
        )

    def load_record(self, attempted: Attempted) -> bytes | None:
        """The encoded record of the load, if there was one.

        A record of its own, which costs only where `bill_loading` says so: a cold start is never dearer than a warm one.
        """
        loaded, meter, invocation = attempted.loaded, attempted.meter, attempted.invocation
        if loaded is None:
            return None
        spec, phases = invocation.function.spec, attempted.phases
        cost = self._prices.cost_nanousd(cpu_us=meter.load_cpu_us, memory_byte_us=0) if self._bill_loading else 0
        return _encode(
            UsageRecord(
                record_id=f"{invocation.id}.{attempted.number}.load",
                kind="load",
                billable=self._bill_loading,
                invocation_id=invocation.id,
                attempt=attempted.number,
                tenant=spec.tenant,
                function=spec.name,
                version=invocation.function.version,
                environment=attempted.environment.digest,
                tags=spec.tags,
                node=self._node,
                outcome=loaded.outcome,
                reason=loaded.reason,
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


def _rfc3339(at: float) -> str:
    second = int(at)
    return f"{_second(second)}.{int((at - second) * 1e6):06d}Z"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
