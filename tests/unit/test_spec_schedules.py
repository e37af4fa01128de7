"""Schedules as functions declare them: what can be meant, and what cannot."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from folders import folder, only_error, read, without_line

from faas.registry.registry import Revision
from faas.triggers import Trigger


def test_a_schedule_has_a_time_zone_and_a_payload(tmp_path: Path) -> None:
    """All that the contract knows; nothing of it is in the way of other triggers."""
    folder(
        tmp_path, "fn",
        '[[trigger]]\nsubject = "a.b"\n[[trigger]]\nschedule = "*/5 * * * *"\ntimezone = "Europe/Berlin"\npayload = { days = 7, at = 2026-01-02T03:04:05Z }',
    )  # fmt: skip
    functions, invalid = read(tmp_path)

    assert invalid == []
    trigger = functions[0].spec.triggers[1]
    assert (trigger.schedule, trigger.timezone) == ("*/5 * * * *", "Europe/Berlin")
    assert trigger.body == b'{"days":7,"at":"2026-01-02T03:04:05Z"}'


def test_a_payload_is_the_same_bytes_after_it_was_in_the_registry() -> None:
    """Nodes compare what waits with what the registry says."""
    for payload in ({"a": [1, 2.5, True, {"b": "é"}], "n": 10**20}, "text", 0, [], False):
        trigger = Trigger(schedule="* * * * *", payload=payload)
        revision = Revision(version="v", bundle="b", size_bytes=1, runtime="standard", triggers=(trigger,), by="me", at="now")
        read_back = msgspec.json.decode(msgspec.json.encode(revision), type=Revision)

        assert read_back.triggers[0].body == trigger.body == msgspec.json.encode(payload)


def test_without_a_payload_the_event_is_an_empty_object() -> None:
    """A handler that takes a struct with defaults, a dict, or nothing at all gets on with that."""
    assert Trigger(schedule="* * * * *").body == b"{}"


SCHEDULE = '[[trigger]]\nschedule = "* * * * *"\n'


@pytest.mark.parametrize(
    ("spec", "key", "word"),
    [
        ('[[trigger]]\nschedule = "61 * * * *"', "trigger[0].schedule", "'61 * * * *': bad minute; write five fields"),
        ('[[trigger]]\nsubject = "a"\n[[trigger]]\nschedule = "0 0 31 2 *"', "trigger[1].schedule", "bad day-of-month"),
        ('[[trigger]]\ntimezone = "UTC"', "trigger[0].schedule", "is missing"),
        ("[[trigger]]\npayload = 1", "trigger[0].schedule", "is missing"),
        (f'{SCHEDULE}timezone = "Berlin"', "trigger[0].timezone", "'Berlin' is no time zone"),
        (f'{SCHEDULE}subject = "a.b"', "trigger[0].subject", "a [[trigger]] for each"),
        (f'{SCHEDULE}stream = "ORDERS"', "trigger[0].stream", "a [[trigger]] for each"),
        (f'{SCHEDULE}webhook = "a"\nverify = "none"', "trigger[0].schedule", "a [[trigger]] for each"),
        (f'{SCHEDULE}delivery = "at-most-once"', "trigger[0].delivery", "always stored"),
        (f"{SCHEDULE}payload = {{ a = [inf] }}", "trigger[0].payload", "JSON cannot hold"),
        (f'{SCHEDULE}payload = "{"x" * 8200}"', "trigger[0].payload", "more than the 8 KiB"),
        (f'{SCHEDULE}payload = "{"x" * 99}"\n[limits]\npayload = "100B"', "trigger[0].payload", "more than the 100 B of limits.payload"),
        (f'{SCHEDULE}payload = "{"x" * 5000}"\n{SCHEDULE}payload = "{"x" * 5000}"', "trigger[1].payload", "all schedules of a function"),
    ],
)
def test_what_cannot_be_names_the_key_and_what_would_be_right(tmp_path: Path, spec: str, key: str, word: str) -> None:
    """One line is enough to mend it."""
    folder(tmp_path, "fn", spec)
    error = only_error(tmp_path)

    assert without_line(error).startswith(f"fn/function.toml: {key}: "), error
    assert word in error
