"""What a node counts, and the text that a scrape gets of it."""

from __future__ import annotations

import asyncio

from faas.gateway.metrics import exposition
from faas.model import Phases
from faas.tally import DURATIONS_US, Histogram, Snapshot, Tally

KEY = ("acme", "resize")


def scrape(tally: Tally, snapshot: Snapshot) -> list[str]:
    async def snap() -> Snapshot:
        return snapshot

    return asyncio.run(exposition(tally, snap)).decode().splitlines()


def test_a_value_is_counted_in_the_bucket_that_it_is_at_most() -> None:
    """As Prometheus' `le` says."""
    histogram = Histogram((10, 20))
    for value in (0, 10, 11, 20, 21):
        histogram.add(value)

    assert histogram.buckets == [2, 2, 1]
    assert histogram.total == 62


def test_loading_is_counted_only_where_a_worker_had_to_load() -> None:
    """Warm attempts would hide what a cold one costs."""
    tally = Tally()
    tally.attempt(KEY, Phases(start="warm", queue_us=5, run_us=7), "", cpu_us=3, memory_bytes=1)
    tally.attempt(KEY, Phases(start="fork", queue_us=5, load_us=4, run_us=7), "oom", cpu_us=3, memory_bytes=1)

    assert sum(tally.of(KEY).load.buckets) == 1
    assert sum(tally.of(KEY).run.buckets) == 2


def test_ends_are_exported_by_the_names_of_opentelemetry() -> None:
    """Dashboards that know faas.invocations, faas.errors and faas.timeouts find them."""
    tally = Tally()
    for reason in ("", "", "error", "timeout", "cancelled"):
        tally.end(KEY, reason)
    tally.attempt(KEY, Phases(start="fork", queue_us=5, load_us=4, run_us=7), "", cpu_us=3, memory_bytes=1)
    lines = scrape(tally, Snapshot(slots=4, slots_free=3))

    assert 'faas_invocations_total{function="resize",tenant="acme"} 2.0' in lines
    assert 'faas_errors_total{function="resize",outcome="failed",reason="error",tenant="acme"} 1.0' in lines
    assert 'faas_errors_total{function="resize",outcome="cancelled",reason="cancelled",tenant="acme"} 1.0' in lines
    assert 'faas_timeouts_total{function="resize",reason="timeout",tenant="acme"} 1.0' in lines
    assert 'faas_coldstarts_total{function="resize",start="fork",tenant="acme"} 1.0' in lines
    assert 'faas_invoke_duration_seconds_count{function="resize",tenant="acme"} 1.0' in lines
    assert 'faas_invoke_duration_seconds_sum{function="resize",tenant="acme"} 7e-06' in lines
    assert any(line.startswith('faas_init_duration_seconds_bucket{function="resize",le="+Inf"') for line in lines)
    assert tally.ended == 5


def test_the_balance_and_what_waits_are_exported_by_function() -> None:
    """An alarm is set on the imbalance: it must be 0."""
    snapshot = Snapshot(slots=4, slots_free=3, queued={KEY: 2}, pending={KEY: 7}, open={KEY: 9}, imbalance={KEY: 0}, balanced_at=5.0)
    lines = scrape(Tally(), snapshot)

    assert 'faas_queue_depth{function="resize",tenant="acme"} 2.0' in lines
    assert 'faas_events_pending{function="resize",tenant="acme"} 7.0' in lines
    assert 'faas_events_open{function="resize",tenant="acme"} 9.0' in lines
    assert 'faas_conservation_imbalance{function="resize",tenant="acme"} 0.0' in lines
    assert "faas_slots_free 3.0" in lines


def test_the_buckets_reach_from_a_warm_call_to_an_hour() -> None:
    """Both ends are what people ask about."""
    assert list(DURATIONS_US) == sorted(DURATIONS_US)
    assert (DURATIONS_US[0], DURATIONS_US[-1]) == (100, 3_600_000_000)


def test_deliveries_of_webhooks_are_counted_by_what_their_senders_were_told() -> None:
    """A sender with an old secret shows here first; nobody reads its log."""
    tally = Tally()
    for said in ("accepted", "accepted", "signature_invalid"):
        tally.delivery("acme", "orders", said)
    lines = scrape(tally, Snapshot(slots=1, slots_free=1))

    assert 'faas_webhook_deliveries_total{said="accepted",tenant="acme",webhook="orders"} 2.0' in lines
    assert 'faas_webhook_deliveries_total{said="signature_invalid",tenant="acme",webhook="orders"} 1.0' in lines
