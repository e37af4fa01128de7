"""When a schedule is due: daylight saving included, and what can never be due refused in a sentence."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.cron import Cron

BERLIN = ZoneInfo("Europe/Berlin")


def due(schedule: str, timezone: str, after: datetime, count: int = 3) -> list[str]:
    cron = Cron(schedule, timezone)
    return [cron.local(at) for at in cron.times(after.timestamp(), count)]


def test_five_fields_begin_with_the_minute_and_six_with_the_second() -> None:
    """As NATS and cronsim have it; a second at the end would be read as something else by one of them."""
    noon = datetime(2026, 11, 24, 12, tzinfo=ZoneInfo("UTC"))

    assert due("*/5 * * * *", "", noon, 2) == ["2026-11-24T12:05:00Z", "2026-11-24T12:10:00Z"]
    assert due("30 */5 * * * *", "UTC", noon, 2) == ["2026-11-24T12:00:30Z", "2026-11-24T12:05:30Z"]


def test_a_time_of_day_that_the_clocks_leave_out_is_due_as_soon_as_they_go_on() -> None:
    """On 29 March 2026 there is no 02:30 in Berlin; a daily report must not be left out for it."""
    assert due("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=BERLIN)) == [
        "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00", "2026-03-31T02:30:00+02:00",
    ]  # fmt: skip


def test_a_time_of_day_that_comes_twice_is_due_once() -> None:
    """On 25 October 2026 there are two 02:30 in Berlin."""
    assert due("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=BERLIN), 2) == [
        "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00",
    ]  # fmt: skip


@pytest.mark.parametrize("minute", [10, 30, 50])
def test_a_time_that_has_passed_is_not_due_again_in_the_hour_that_comes_twice(minute: int) -> None:
    """What was armed for the first 02:30 has fired when the second one comes."""
    second = datetime(2026, 10, 25, 2, minute, fold=1, tzinfo=BERLIN)

    assert due("30 2 * * *", "Europe/Berlin", second, 1) == ["2026-10-26T02:30:00+01:00"]


def test_an_interval_goes_by_time_as_it_passes() -> None:
    """Every 20 minutes is every 20 minutes, in the hour that comes twice too."""
    before = datetime(2026, 10, 25, 1, 30, tzinfo=BERLIN).timestamp()
    times = [before + 600, *Cron("*/20 * * * *", "Europe/Berlin").times(before + 600, 8)]

    assert {later - earlier for earlier, later in pairwise(times)} == {1200}


def test_six_fields_go_by_time_as_it_passes() -> None:
    """As cronsim has it: what Debian's cron does about a time of day is only for its five fields."""
    assert due("0 30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=BERLIN), 2) == [
        "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00",
    ]  # fmt: skip
    assert due("0 30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=BERLIN), 1) == ["2026-03-30T02:30:00+02:00"]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("* * * *", "wrong number of fields"),
        ("* * * * * * *", "wrong number of fields"),
        ("61 * * * *", "bad minute"),
        ("* * * * * 8", "bad day-of-week"),
        ("*/0 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("@daily", "write five fields"),
        ("", "write five fields"),
        ("0 0 * * *" + ",1" * 60, "at most 100"),
        ("* * * * *\n", "plain characters"),
        ("² * * * *", "plain characters"),
    ],
)
def test_what_is_no_schedule_is_told_in_one_sentence(schedule: str, words: str) -> None:
    """A function with a typing error is refused when it is read, and not silent for ever."""
    with pytest.raises(ValueError, match=words):
        Cron(schedule, "UTC")


@pytest.mark.parametrize("timezone", ["Nowhere/X", "../etc/passwd", "/etc/passwd", "America", "Europe/Berlin\0", "x" * 5000])
def test_what_is_no_time_zone_reads_no_file_and_is_told(timezone: str) -> None:
    """A name from a declaration is looked up as a path."""
    with pytest.raises(ValueError, match="is no time zone"):
        Cron("* * * * *", timezone)


@given(st.text(alphabet="0123456789*/,-#?LWMONSUFEB @", max_size=40))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    """A deploy must end in words whatever was typed."""
    try:
        times = Cron(text, "Europe/Berlin").times(1_790_000_000, 3)
    except ValueError:
        return
    assert times == sorted(set(times))
    assert all(at > 1_790_000_000 for at in times)
