"""The bus's clock beside the machine's, on a real server."""

from __future__ import annotations

import time

import pytest

from faas.bus import clock
from faas.bus.clock import SKEW_S, ClockWatch
from faas.bus.connection import Bus


async def test_the_time_of_the_bus_goes_on_when_the_machines_clock_is_set(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set by an hour while a node runs must not make every event an hour old."""
    right, now = time.time(), bus.now
    monkeypatch.setattr(bus, "now", now)  # it is the session's: put back afterwards
    async with ClockWatch.open(bus):
        assert clock.problem(bus) == ""
        monkeypatch.setattr(time, "time", lambda: right + 3600)

        assert bus.now() == pytest.approx(right, abs=SKEW_S)
        assert "ahead of" in clock.problem(bus)


async def test_a_bus_that_does_not_tell_its_time_leaves_the_machines(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account may be denied the question; its nodes run as they did, and nothing is flagged that was not measured."""
    monkeypatch.setattr(bus, "now", bus.now)
    monkeypatch.setattr(clock, "QUESTION", "nobody.answers")
    async with ClockWatch.open(bus):
        assert bus.now() == pytest.approx(time.time(), abs=SKEW_S)
        assert clock.problem(bus) == ""
