"""What an attempt used, and the usage records made of it. Knows prices and no bus.

A record is made when it is first asked for: a synchronous answer goes out before its record is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

import msgspec

from faas.budget.prices import PriceTable
from faas.invocation import Invocation
from faas.model import Ended, Environment, Phases, UsageRecord

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
    meters: Mapping[str, int] = field(default_factory=dict)


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


@dataclass(slots=True)
class _Use:
    """In what the record of an attempt and that of its load differ."""

    kind: Literal["attempt", "load"]
    record_id: str
    billable: bool
    ended_at: float
    cpu_us: int
    memory_peak_bytes: int
    cost_nanousd: int
    run_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    meters: Mapping[str, int] = field(default_factory=dict)


class Billing:
    """Makes usage records at the prices of one table."""

    def __init__(self, prices: PriceTable, *, node: str, bill_loading: bool) -> None:
        self._prices, self._node, self._bill_loading = prices, node, bill_loading

    def record(self, attempted: Attempted) -> bytes:
        """The encoded record of the attempt. Its cost never exceeds what its timeout, CPUs and memory reserve."""
        meter, ended, invocation = attempted.meter, attempted.ended, attempted.invocation
        reserved = self._prices.reserved_nanousd(timeout_s=invocation.timeout_s, cpus=attempted.cpus, memory_bytes=attempted.memory_bytes)
        cost = self._prices.cost_nanousd(cpu_us=meter.cpu_us, memory_byte_us=meter.memory_peak_bytes * meter.run_us)
        use = _Use(
            kind="attempt",
            record_id=f"{invocation.id}.{attempted.number}",
            billable=not attempted.drained,
            ended_at=meter.ended_at,
            run_us=meter.run_us,
            cpu_us=meter.cpu_us,
            memory_peak_bytes=meter.memory_peak_bytes,
            bytes_in=invocation.payload_bytes,
            bytes_out=ended.body_bytes,
            meters=meter.meters,
            cost_nanousd=min(cost, reserved),
        )
        return self._encoded(attempted, ended, use)

    def load_record(self, attempted: Attempted) -> bytes | None:
        """The encoded record of the load, if there was one.

        A record of its own, which costs only where `bill_loading` says so: a cold start is never dearer than a warm one.
        """
        loaded, meter = attempted.loaded, attempted.meter
        if loaded is None:
            return None
        use = _Use(
            kind="load",
            record_id=f"{attempted.invocation.id}.{attempted.number}.load",
            billable=self._bill_loading,
            ended_at=meter.loaded_at,
            cpu_us=meter.load_cpu_us,
            memory_peak_bytes=meter.load_memory_peak_bytes,
            cost_nanousd=self._prices.cost_nanousd(cpu_us=meter.load_cpu_us, memory_byte_us=0) if self._bill_loading else 0,
        )
        return self._encoded(attempted, loaded, use)

    def _encoded(self, attempted: Attempted, ended: Ended, use: _Use) -> bytes:
        invocation, phases = attempted.invocation, attempted.phases
        spec = invocation.function.spec
        return _encode(
            UsageRecord(
                record_id=use.record_id,
                kind=use.kind,
                billable=use.billable,
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
                started_at=_rfc3339(attempted.meter.started_at),
                ended_at=_rfc3339(use.ended_at),
                start=phases.start,
                queue_us=phases.queue_us,
                load_us=phases.load_us,
                run_us=use.run_us,
                cpu_us=use.cpu_us,
                memory_peak_bytes=use.memory_peak_bytes,
                memory_byte_us=use.memory_peak_bytes * use.run_us,
                bytes_in=use.bytes_in,
                bytes_out=use.bytes_out,
                meters=use.meters,
                cost_nanousd=use.cost_nanousd,
                price_version=self._prices.version,
            )
        )


def _rfc3339(at: float) -> str:
    second = int(at)
    return f"{_second(second)}.{int((at - second) * 1e6):06d}Z"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
