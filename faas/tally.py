"""What happened on this node since it started, counted: ends and attempts by function, and how long their phases took; and how it stands. Knows no exporter and no part of the node.

On the way of every invocation: plain integers and one bisection for each figure; names and labels are made when somebody reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from faas.model import Phases

Key = tuple[str, str]
"""(tenant, function)."""

DURATIONS_US = (100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
                10_000_000, 30_000_000, 60_000_000, 300_000_000, 3_600_000_000)  # fmt: skip
"""Upper bounds of the buckets: from a warm call on an idle machine to an hour of training."""
SIZES_BYTES = tuple(2**power for power in range(22, 38))
"""4 MiB to 128 GiB."""


class Histogram:
    """Values counted by bucket: `buckets[i]` are those up to `bounds[i]`, the last one what is above."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, value: int) -> None:
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True, eq=False)
class Counts:
    """Of one function."""

    ends: dict[str, int] = field(default_factory=dict)  # by reason, "" for a success
    attempts: dict[tuple[str, str], int] = field(default_factory=dict)  # by (start, reason)
    queue: Histogram = field(default_factory=lambda: Histogram(DURATIONS_US))
    load: Histogram = field(default_factory=lambda: Histogram(DURATIONS_US))
    run: Histogram = field(default_factory=lambda: Histogram(DURATIONS_US))
    cpu: Histogram = field(default_factory=lambda: Histogram(DURATIONS_US))
    memory: Histogram = field(default_factory=lambda: Histogram(SIZES_BYTES))


class Tally:
    """One per node. Functions are those that it serves, reasons and starts closed lists: so it is bounded."""

    def __init__(self) -> None:
        self._functions: dict[Key, Counts] = {}
        self.deliveries: dict[tuple[str, str, str], int] = {}  # by tenant, webhook, and "accepted", "repeated", "answered" or why not
        self.given_back = 0  # invocations that the node did not start because it stops

    @property
    def functions(self) -> Mapping[Key, Counts]:
        """By (tenant, function)."""
        return self._functions

    @property
    def ended(self) -> int:
        """Invocations that have ended here."""
        return sum(sum(counts.ends.values()) for counts in self._functions.values())

    def of(self, key: Key) -> Counts:
        """The counts of one function."""
        counts = self._functions.get(key)
        if counts is None:
            counts = self._functions[key] = Counts()
        return counts

    def delivery(self, tenant: str, webhook: str, said: str) -> None:
        """Somebody has posted to a webhook that is served here."""
        key = (tenant, webhook, said)
        self.deliveries[key] = self.deliveries.get(key, 0) + 1

    def end(self, key: Key, reason: str) -> None:
        """An invocation has ended, and no other attempt follows."""
        ends = self.of(key).ends
        ends[reason] = ends.get(reason, 0) + 1

    def attempt(self, key: Key, phases: Phases, reason: str, *, cpu_us: int, memory_bytes: int) -> None:
        """A worker got an invocation, and that attempt has ended."""
        counts = self.of(key)
        kind = (phases.start, reason)
        counts.attempts[kind] = counts.attempts.get(kind, 0) + 1
        counts.queue.add(phases.queue_us)
        counts.run.add(phases.run_us)
        counts.cpu.add(cpu_us)
        counts.memory.add(memory_bytes)
        if phases.load_us:
            counts.load.add(phases.load_us)


class Snapshot(Struct, frozen=True, kw_only=True):
    """How a node stands at one moment. By (tenant, function): `queued` waits here for a worker, `pending` waits on the bus, `open` is accepted and not ended.

    `imbalance` is accepted - settled - open as it was struck at `balanced_at`, seconds since the epoch.
    """

    slots: int
    slots_free: int
    workers: dict[tuple[str, str, str], int] = {}  # by tenant, function, state
    sandboxes: dict[tuple[str, str], int] = {}  # by profile, state
    spares: dict[str, int] = {}
    bus_connected: bool = False
    clock_skew_s: float = 0.0  # how far this machine is ahead of the bus
    queued: dict[Key, int] = {}
    pending: dict[Key, int] = {}
    open: dict[Key, int] = {}
    imbalance: dict[Key, int] = {}
    balanced_at: float = 0.0
    projection_absent: bool = False
    projection_behind: int = 0
