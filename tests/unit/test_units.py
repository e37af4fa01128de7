"""Durations, sizes, subjects and ids: the small words that everything is written in."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas import subjects
from faas.identity import invocation_id, random_invocation_id
from faas.units import Duration, Size, format_above, format_cost, format_duration, format_size

TOKEN = st.sampled_from(["a", "b", "*"])
SUBJECT = st.lists(TOKEN, min_size=1, max_size=4).map(".".join) | st.lists(TOKEN, max_size=3).map(lambda t: ".".join([*t, ">"]))
CONCRETE = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5)


def matches(pattern: str, subject: list[str]) -> bool:
    """NATS' own rule, written as plainly as can be."""
    regex = r"\.".join({"*": r"[^.]+", ">": r".+"}.get(token, token) for token in pattern.split("."))
    return re.fullmatch(regex, ".".join(subject)) is not None


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("5m", 300), ("6h", 21_600), ("7d", 604_800), ("1.5s", 1.5)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    """And held in seconds."""
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("512MiB", 2**29), ("18GiB", 18 * 2**30), ("64KiB", 65_536), ("10B", 10)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    """And held in bytes."""
    assert Size.parse(text) == size


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1 week", "1S", "1e3s", "nan", "inf", 30, None, True])
def test_what_is_no_duration_says_what_would_be(text: object) -> None:
    """Numbers too: seconds or milliseconds would be a guess."""
    with pytest.raises(ValueError, match="30s"):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["", "512", "MiB", "1GB", "1gib", "-1MiB", 512, None])
def test_what_is_no_size_says_what_would_be(text: object) -> None:
    """A GB that is not a GiB is how limits go wrong."""
    with pytest.raises(ValueError, match="512MiB"):
        Size.parse(text)


def test_durations_and_sizes_are_printed_short() -> None:
    """For tables."""
    assert [format_duration(s) for s in (0.0123, 2.5, 90)] == ["12.3ms", "2.5s", "1.5m"]
    assert [format_size(b) for b in (10, 65_536, 300_000_000)] == ["10 B", "64 KiB", "286 MiB"]
    assert (format_size(1_044_480), format_duration(2000 * 86_400)) == ("1020 KiB", "2000d")


def test_a_size_just_above_a_limit_does_not_look_like_it() -> None:
    """A "64 MiB; the limit is 64 MiB" leaves whoever reads it without an answer."""
    assert format_above(65 << 20, 64 << 20) == ("65 MiB", "64 MiB")
    assert format_above((64 << 20) + 1, 64 << 20) == ("67,108,865 B", "67,108,864 B")


@given(wide=SUBJECT, narrow=SUBJECT, concrete=CONCRETE)
def test_containment_and_overlap_agree_with_matching(wide: str, narrow: str, concrete: list[str]) -> None:
    """Two definitions of one thing: no subject that the narrow one takes escapes the wide one."""
    if subjects.contains(wide, narrow) and matches(narrow, concrete):
        assert matches(wide, concrete)
    if matches(wide, concrete) and matches(narrow, concrete):
        assert subjects.overlaps(wide, narrow)


@given(st.lists(SUBJECT, max_size=6), CONCRETE)
def test_reducing_by_containment_changes_no_match(patterns: list[str], concrete: list[str]) -> None:
    """Never narrower, and never wider."""
    reduced = subjects.reduce_by_containment(patterns)

    assert any(matches(p, concrete) for p in reduced) == any(matches(p, concrete) for p in patterns)
    assert not any(a != b and subjects.contains(a, b) for a in reduced for b in reduced)


def test_an_invocation_id_is_what_the_contract_says() -> None:
    """Anyone can compute it from the event."""
    expected = base64.b32encode(hashlib.sha256(b"default\0hello\0/src\0e-1").digest()).decode().lower()[:26]

    assert invocation_id("default", "hello", source="/src", event_id="e-1") == expected


def test_random_ids_have_the_same_form_and_differ() -> None:
    """They stand in the same places."""
    ids = {random_invocation_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(re.fullmatch("[a-z2-7]{26}", one) for one in ids)


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (0, "$0"),
        (1, "$0.000000001"),
        (12, "$0.000000012"),
        (1_234_567, "$0.00123"),
        (50_000_000, "$0.0500"),
        (2_500_000_000, "$2.50"),
        (-12, "-$0.000000012"),
    ],
)
def test_a_cost_shows_digits_that_say_something(nanousd: int, text: str) -> None:
    """Nine zeros say nothing, and neither does an exponent."""
    assert format_cost(nanousd) == text
