"""What is done about the armed schedules, given what the registry says: one rule, so that nodes with different views never fight."""

from __future__ import annotations

from faas.bus.armed import Armed, Slot, View
from faas.timetable import Step, known_of, steps
from faas.triggers import Trigger

HOURLY, DAILY = Trigger(schedule="0 * * * *"), Trigger(schedule="0 3 * * *", timezone="Europe/Berlin", payload={"n": 1})
KEY = ("default", "report")
FIRST, SECOND = Slot(*KEY, 0), Slot(*KEY, 1)
OLD, NOW, NEW = View("2026-01-01", 4), View("2026-01-01", 7), View("2026-01-01", 9)


def armed(slot: Slot, trigger: Trigger, view: View = OLD) -> Armed:
    return Armed(slot=slot, at=1.0, view=view, sequence=5, schedule=trigger.schedule, timezone=trigger.timezone or "UTC", body=trigger.body)


def todo(triggers: list[Trigger], *waiting: Armed, served: bool = True) -> list[Step]:
    known = known_of((NOW, {KEY: triggers} if triggers else {}, {KEY} if served else ()))
    return steps(known, {one.slot: one for one in waiting})


def test_what_is_armed_as_it_is_declared_is_left() -> None:
    """Whoever armed it, and however long ago: a restart moves no time."""
    assert todo([HOURLY, DAILY], armed(FIRST, HOURLY), armed(SECOND, DAILY)) == []


def test_what_is_not_armed_is_armed_by_a_node_that_serves_it() -> None:
    """Subject triggers between them take no number."""
    assert todo([HOURLY, Trigger(subject="a.b"), DAILY]) == [Step(slot=FIRST, trigger=HOURLY), Step(slot=SECOND, trigger=DAILY)]


def test_a_node_that_does_not_serve_it_arms_nothing() -> None:
    """Else events would wait for whoever never comes."""
    assert todo([HOURLY], served=False) == []


def test_a_changed_schedule_zone_or_payload_is_armed_anew() -> None:
    """Each of them is the version's."""
    for other in (HOURLY, Trigger(schedule=DAILY.schedule, payload={"n": 1}), Trigger(schedule=DAILY.schedule, timezone=DAILY.timezone)):
        waiting = armed(FIRST, other)
        assert todo([DAILY], waiting) == [Step(slot=FIRST, trigger=DAILY, instead_of=waiting)]


def test_what_nobody_declares_is_taken_away_by_any_node() -> None:
    """The function was removed, or withdrawn, or has a schedule less; the node that armed it may be gone."""
    gone, less = armed(Slot("default", "gone", 0), HOURLY), armed(SECOND, DAILY)

    assert todo([HOURLY], gone, armed(FIRST, HOURLY), less, served=False) == [
        Step(slot=gone.slot, instead_of=gone), Step(slot=SECOND, instead_of=less),
    ]  # fmt: skip


def test_what_was_armed_by_somebody_who_has_read_further_is_left() -> None:
    """A node that lags behind would else take away what was just deployed."""
    assert todo([HOURLY], armed(FIRST, DAILY, NEW), armed(Slot("default", "newer", 0), HOURLY, NEW)) == []


def test_a_registry_that_was_made_anew_counts_from_the_start() -> None:
    """Its revisions begin at 1, and what was armed by the one before must not stay for ever."""
    of_another = armed(FIRST, DAILY, View("2025-12-31", 4000))

    assert todo([HOURLY], of_another) == [Step(slot=FIRST, trigger=HOURLY, instead_of=of_another)]
