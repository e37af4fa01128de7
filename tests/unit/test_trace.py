"""W3C trace context of an attempt."""

from __future__ import annotations

import re

import pytest

import faas
from faas.worker.trace import span_of

CAME = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALID = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def test_an_attempt_is_a_child_in_the_trace_of_its_event() -> None:
    """The same trace and the same flags, a span of its own."""
    _, trace_id, span_id, flags = span_of(CAME, "inv", 1).split("-")

    assert (trace_id, flags) == ("0af7651916cd43dd8448eb211c80319c", "01")
    assert span_id != "b7ad6b7169203331"


def test_the_span_follows_from_invocation_and_attempt() -> None:
    """Node and worker work it out apart, and what is published again after a crash must be the same bytes."""
    assert span_of(CAME, "inv", 1) == span_of(CAME, "inv", 1)
    assert len({span_of(CAME, "inv", 1), span_of(CAME, "inv", 2), span_of(CAME, "other", 1)}) == 3


@pytest.mark.parametrize("came", ["", "nonsense", "ff-" + CAME[3:], "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_without_a_valid_one_a_trace_begins_that_nobody_asked_to_record(came: str) -> None:
    """An invalid one restarts the trace and fails nothing."""
    begun = span_of(came, "inv", 1)

    assert VALID.fullmatch(begun)
    assert begun.endswith("-00")
    assert begun.split("-")[1] == span_of("", "inv", 2).split("-")[1]  # all attempts are in the same trace


def test_a_version_to_come_is_read_as_far_as_it_is_known() -> None:
    """W3C: a higher version may have more behind the flags."""
    assert span_of("cc-" + CAME[3:] + "-more", "inv", 1).split("-")[1] == CAME.split("-")[1]


def test_a_context_outside_of_an_attempt_has_none() -> None:
    """In `load`, and in a test that calls the handler."""
    assert faas.Context().traceparent == ""
