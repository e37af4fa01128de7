"""What `faas schedules` prints, from rows that are there already."""

from __future__ import annotations

import pytest

from faas.bus.armed import Armed, Slot, View
from faas.cli.schedules import _print_table, _row
from faas.triggers import Trigger

AT = 1_800_000_000.0
TRIGGER = Trigger(schedule="0 8 * * *", timezone="Mars/Olympus")
ARMED = Armed(
    slot=Slot("default", "f", 0), at=AT, view=View("r", 1), sequence=1, schedule="0 8 * * *", timezone="Mars/Olympus", body=TRIGGER.body
)


def test_a_schedule_in_a_time_zone_that_this_machine_does_not_know_is_shown_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    """A node somewhere knows it and has armed it: the list of all others must not fail because of one."""
    _print_table([_row(ARMED.slot, TRIGGER, ARMED, now=AT - 60)], AT - 60)

    assert "2027-01-15T08:00:00Z" in "".join(capsys.readouterr().out.split("\n"))
