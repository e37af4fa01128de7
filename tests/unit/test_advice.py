"""What suits a function by what was measured of it: every rule of the module's docstring, at its number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from faas.accounting.advice import ENOUGH, HOLD_PER_LOAD, Measured, Spread, imported_modules, limits, measure, mode, profile
from faas.model import FunctionSpec, Start, UsageRecord

MIB = 2**20
BEGAN = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def record(number: int, **fields: object) -> UsageRecord:
    """The usage record of one attempt, a second after the one before; fields replace those of a warm success."""
    at = (BEGAN + timedelta(seconds=number)).isoformat(timespec="microseconds")
    usual: dict[str, object] = {
        "record_id": f"i{number}.1", "kind": "attempt", "billable": True, "invocation_id": f"i{number}", "attempt": 1, "tenant": "default",
        "function": "f", "version": "v", "environment": "e", "tags": {}, "node": "n", "outcome": "succeeded", "reason": "", "started_at": at,
        "ended_at": at, "start": "warm", "queue_us": 100, "load_us": 0, "run_us": 1000, "cpu_us": 900, "memory_peak_bytes": 32 * MIB,
        "memory_byte_us": 0, "bytes_in": 1, "bytes_out": 1, "cost_nanousd": 0, "price_version": "none",
    }  # fmt: skip
    return UsageRecord(**(usual | fields))  # type: ignore[arg-type]


def measured(
    *, loads: int = 0, attempts: int = 100, load_s: float = 1.0, gap_s: float = 60.0, peak: int = 100 * MIB, oom: int = 0
) -> Measured:
    """A function that runs 10 ms."""
    starts: dict[Start, int] = {"warm": attempts - loads, "spare": loads, "fork": 0, "cold": 0}
    load, run = Spread(int(load_s * 1e6), int(load_s * 2e6)), Spread(10_000, 20_000)
    return Measured(
        attempts=attempts, span_s=gap_s * (attempts - 1), per_hour=3600 / gap_s, starts=starts, ended_badly=0,
        queue=Spread(1, 2), load=load, run=run, cpu=run, memory_peak_bytes=peak, oom=oom,
    )  # fmt: skip


# ---------------------------------------------------------------- measuring


def test_rate_starts_and_percentiles_are_those_of_the_records() -> None:
    """Everything else is advice on these figures."""
    records = [record(n, start="spare" if n < 5 else "warm", load_us=2000 if n < 5 else 0, run_us=1000 * (n + 1)) for n in range(20)]

    found = measure(records)

    assert (found.attempts, found.span_s, found.per_hour) == (20, 19.0, 3600.0)
    assert found.starts == {"warm": 15, "spare": 5, "fork": 0, "cold": 0}
    assert found.load == Spread(2000, 2000)
    assert found.run == Spread(10_000, 19_000)


def test_a_record_that_comes_twice_counts_once_and_one_taken_back_not_at_all() -> None:
    """A batch is sent again under the same id, and a correction is a retraction."""
    records = [record(1), record(1), record(2), record(2, record_type="retraction"), record(3, kind="load", record_id="i3.1.load")]

    assert measure(records).attempts == 1


def test_nothing_measured_is_no_error() -> None:
    """A function that never ran."""
    assert measure([]).attempts == 0
    assert measure([record(1)]).per_hour == 0


# ---------------------------------------------------------------- mode


@pytest.mark.parametrize(
    ("figures", "key", "set_to"),
    [
        (measured(loads=20), "scale.keep_alive", ""),  # a fifth: what is set suits
        (measured(loads=50, load_s=0.1), "scale.keep_alive", ""),  # nobody notices
        (measured(loads=100, gap_s=600), "scale.keep_alive", "30m"),  # three gaps
        (measured(loads=100, gap_s=1201), "scale.min_warm", "1"),  # three gaps are above an hour
        (measured(loads=50, gap_s=60), "scale.min_warm", "1"),  # three gaps are below keep_alive: they come at once
        (measured(loads=100, gap_s=1.1 * HOLD_PER_LOAD), "scale.keep_alive", ""),  # the memory held costs more than the wait
    ],
    ids=["few loads", "short loads", "keep alive longer", "keep one warm", "bursts", "rare"],
)
def test_the_mode_follows_from_loading_against_memory_held(figures: Measured, key: str, set_to: str) -> None:
    """A second of loading that somebody waits for is worth an hour of memory, and no more."""
    found = mode(figures, min_warm=0, keep_alive_s=300)

    assert (found.key, found.set_to) == (key, set_to)


def test_a_load_that_is_shorter_than_the_run_is_not_worth_memory() -> None:
    """Half of the wait would stay."""
    figures = measured(loads=100, load_s=0.005)

    assert mode(figures, min_warm=0, keep_alive_s=300).set_to == ""


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("peak", "limit", "set_to"),
    [
        (80, 100, "128MiB"),  # within a fifth of it
        (79, 100, ""),
        (100, 400, ""),  # four times is not above four times
        (100, 2048, "192MiB"),  # 1.5 times the peak, in steps of 64 MiB
        (10, 256, ""),  # not much is wasted
    ],
)
def test_a_memory_limit_is_tight_or_wide_by_its_peak(peak: int, limit: int, set_to: str) -> None:
    """A crash is near, or a neighbour has no room."""
    (found,) = limits(measured(peak=peak * MIB), memory_bytes=limit * MIB, timeout_s=30)

    assert found.set_to == set_to


def test_a_function_that_was_killed_for_its_memory_gets_twice_as_much() -> None:
    """Its peak says only where it was stopped."""
    (found,) = limits(measured(peak=MIB, oom=2), memory_bytes=256 * MIB, timeout_s=30)

    assert found.set_to == "512MiB"


def test_a_timeout_near_the_p95_is_tight() -> None:
    """The next slow event would be killed."""
    found = limits(measured(), memory_bytes=256 * MIB, timeout_s=0.02)

    assert [advice.set_to for advice in found if advice.key == "limits.timeout"] == ["1s"]


# ---------------------------------------------------------------- profile

PACKAGES = {"standard": frozenset({"msgspec"}), "ai": frozenset({"msgspec", "torch", "numpy"})}


@pytest.mark.parametrize(
    ("runtime", "source", "set_to"),
    [
        ("ai", b"import msgspec, json", "standard"),
        ("ai", b"def handle(e):\n    from torch import nn", ""),  # a lazy import counts
        ("standard", b"import numpy as np", "ai"),
        ("standard", b"import json", ""),
    ],
)
def test_the_profile_follows_from_what_the_source_imports(runtime: str, source: bytes, set_to: str) -> None:
    """Each `ai` sandbox holds torch, whether it is used or not."""
    found = profile(FunctionSpec(runtime=runtime), imported_modules([source]), PACKAGES)

    assert found is not None
    assert found.set_to == set_to


def test_of_a_function_with_packages_of_its_own_no_profile_is_advised() -> None:
    """They may bring any module, and need any other."""
    assert profile(FunctionSpec(runtime="ai", dependencies=("pillow",)), frozenset({"PIL"}), PACKAGES) is None
    assert profile(FunctionSpec(runtime="gone"), frozenset(), PACKAGES) is None


def test_relative_imports_and_what_does_not_parse_import_nothing() -> None:
    """A source may be anything."""
    assert imported_modules([b"from . import torch\nfrom .torch import nn", b"import (", b"\x00"]) == frozenset()


def test_enough_is_more_than_chance() -> None:
    """With fewer attempts a p95 is the maximum."""
    assert ENOUGH >= 20
