"""`/metrics`: what the node counts and how it stands, as Prometheus text. Owns names and labels; what they count is told to it.

Names follow OpenTelemetry's semantic conventions for FaaS metrics (faas.invocations, faas.errors, faas.timeouts,
faas.coldstarts, faas.init_duration, faas.invoke_duration, faas.cpu_usage, faas.mem_usage) in Prometheus' form. Every label is
of a closed list: tenants, functions and webhooks that are served, outcomes, reasons, starts, states, profiles.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from faas.model import OUTCOME_OF_REASON
from faas.tally import Histogram, Key, Snapshot, Tally

OWNER = ("tenant", "function")


Snap = Callable[[], Awaitable[Snapshot]]


class _Families:
    """A collector of what was gathered before: prometheus-client asks it in its own, synchronous way."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def exposition(tally: Tally, snap: Snap) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry()
    registry.register(_Families([*_counted(tally), *_standing(await snap())]))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


# ---------------------------------------------------------------- what was counted


def _counted(tally: Tally) -> Iterator[Metric]:
    functions = list(tally.functions.items())
    invocations = CounterMetricFamily("faas_invocations", "Invocations that succeeded.", labels=OWNER)
    errors = CounterMetricFamily(
        "faas_errors", "Invocations that ended as anything but succeeded or timed_out, by reason.", labels=(*OWNER, "outcome", "reason")
    )
    timeouts = CounterMetricFamily("faas_timeouts", "Invocations that timed out.", labels=(*OWNER, "reason"))
    coldstarts = CounterMetricFamily("faas_coldstarts", "Attempts whose worker was not warm, by how it started.", labels=(*OWNER, "start"))
    attempts = CounterMetricFamily("faas_attempts", "Attempts that a worker got, by how they ended.", labels=(*OWNER, "outcome", "reason"))
    for key, counts in functions:
        invocations.add_metric(key, counts.ends.get("", 0))
        for reason, count in counts.ends.items():
            outcome = OUTCOME_OF_REASON[reason]
            if outcome == "timed_out":
                timeouts.add_metric((*key, reason), count)
            elif reason:
                errors.add_metric((*key, outcome, reason), count)
        by_start: dict[str, int] = {}
        by_reason: dict[str, int] = {}
        for (start, reason), count in counts.attempts.items():
            by_start[start] = by_start.get(start, 0) + count
            by_reason[reason] = by_reason.get(reason, 0) + count
        for start, count in by_start.items():
            if start != "warm":
                coldstarts.add_metric((*key, start), count)
        for reason, count in by_reason.items():
            attempts.add_metric((*key, OUTCOME_OF_REASON[reason], reason), count)
    yield from (invocations, errors, timeouts, coldstarts, attempts)
    deliveries = CounterMetricFamily(
        "faas_webhook_deliveries", "Requests to webhooks, by what their senders were told.", labels=("tenant", "webhook", "said")
    )
    for delivered, count in tally.deliveries.items():
        deliveries.add_metric(delivered, count)
    yield deliveries
    for name, text, pick in (
        ("faas_queue_duration_seconds", "Time from acceptance to a worker.", "queue"),
        ("faas_init_duration_seconds", "Time of loading, where a worker had to load.", "load"),
        ("faas_invoke_duration_seconds", "Time of the handler.", "run"),
        ("faas_cpu_usage_seconds", "Processor time of an attempt.", "cpu"),
        ("faas_mem_usage_bytes", "Peak memory of an attempt.", "memory"),
    ):
        family = HistogramMetricFamily(name, text, labels=OWNER)
        for key, counts in functions:
            _add(family, key, getattr(counts, pick), per=1e6 if name.endswith("_seconds") else 1.0)
        yield family


def _add(family: HistogramMetricFamily, key: Key, histogram: Histogram, *, per: float) -> None:
    bounds = [*(str(bound / per) for bound in histogram.bounds), "+Inf"]
    family.add_metric(key, list(zip(bounds, accumulate(histogram.buckets), strict=True)), histogram.total / per)


# ---------------------------------------------------------------- how it stands


def _standing(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily("faas_slots", "Attempts that may run at once on this node.", value=snapshot.slots)
    yield GaugeMetricFamily("faas_slots_free", "Of them, free.", value=snapshot.slots_free)
    yield GaugeMetricFamily("faas_bus_connected", "Whether the bus is connected.", value=snapshot.bus_connected)
    yield GaugeMetricFamily("faas_clock_skew_seconds", "How far this machine's clock is ahead of the bus's.", value=snapshot.clock_skew_s)
    yield GaugeMetricFamily("faas_projection_absent", "Whether this node cannot say what ran.", value=snapshot.projection_absent)
    yield GaugeMetricFamily("faas_projection_behind", "Messages that its projection has not read yet.", value=snapshot.projection_behind)
    yield _gauge("faas_workers", "Workers by state.", labels=(*OWNER, "state"), values=snapshot.workers.items())
    yield _gauge("faas_sandboxes", "Sandboxes by state.", labels=("profile", "state"), values=snapshot.sandboxes.items())
    yield _gauge(
        "faas_spares",
        "Prepared workers without a function.",
        labels=("profile",),
        values=[((name,), n) for name, n in snapshot.spares.items()],
    )
    yield _gauge("faas_queue_depth", "Invocations that wait on this node for a worker.", labels=OWNER, values=snapshot.queued.items())
    yield _gauge("faas_events_pending", "Events on the bus that no node has yet.", labels=OWNER, values=snapshot.pending.items())
    yield _gauge("faas_events_open", "Events accepted and not settled, by the bus.", labels=OWNER, values=snapshot.open.items())
    yield _gauge(
        "faas_conservation_imbalance",
        "Accepted - settled - open, by what the streams and consumers hold; 0 at rest, above 0: lost.",
        labels=OWNER,
        values=snapshot.imbalance.items(),
    )
    yield GaugeMetricFamily("faas_conservation_checked_timestamp_seconds", "When that was struck.", value=snapshot.balanced_at)


def _gauge(name: str, text: str, *, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], int]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
