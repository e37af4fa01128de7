"""Why an invocation is where it is, in words."""

from __future__ import annotations

import pytest

from faas.calling.history import RunInFull, Why, moment_of, why
from faas.errors import ConfigInvalid
from faas.runs import Held, Holding, Letter, Place, Run, Try

RUN = Run(invocation="inv", tenant="acme", function="resize", stream="FAAS_EVENTS", sequence=7, accepted_ms=1)
HELD = Held(invocation="inv", tenant="acme", function="resize", stage="queued", since_ms=1000, attempt=1, why="no slot is free")


def said(run: Run = RUN, *, held: Held | None = None, place: Place | None = None, letter: Letter | None = None) -> Why:
    holder = "one" if held is not None else ""
    return why(RunInFull(run=run, held=held, holder=holder, letter=letter), [Holding(node="one", held=held)], place)


def test_in_the_queue_of_a_node_it_says_for_what_it_waits() -> None:
    """Slot, max_workers, environment: what can be changed."""
    answer = said(held=HELD)

    assert (answer.state, answer.node) == ("waiting", "one")
    assert answer.because == "it is in the queue of node one since 1970-01-01T00:00:01.000Z: no slot is free"


def test_running_it_says_where_and_since_when() -> None:
    """Who wants to look at the process needs node and worker."""
    answer = said(held=Held(invocation="inv", tenant="acme", function="resize", stage="running", since_ms=1000, attempt=2, worker="w9"))

    assert (answer.state, answer.worker) == ("running", "w9")
    assert "node one, worker w9, since 1970-01-01T00:00:01.000Z (attempt 2)" in answer.because


def test_in_the_stream_it_says_what_stands_before_it() -> None:
    """A backlog explains itself."""
    answer = said(place=Place(delivered=False, before=12))

    assert answer.state == "waiting"
    assert "it is in FAAS_EVENTS, and no node has asked for it yet: up to 12 events of its function before it" in answer.because


def test_a_function_that_nobody_serves_is_named_as_the_reason() -> None:
    """Not a lost event: it waits for its function."""
    assert "no node serves its function" in said(place=Place(served=False)).because


def test_an_event_that_was_dropped_is_said_to_be() -> None:
    """It would look as if it waited for ever."""
    assert "in FAAS_EVENTS no more: dropped with its function" in said(place=Place(served=False, gone=True)).because


def test_a_back_off_says_until_when() -> None:
    """And what it is for."""
    tried = Run(invocation="inv", tenant="acme", function="resize", accepted_ms=1, attempts=2, reason="oom")
    answer = said(tried, place=Place(delivered=True, retry_at_ms=60_000))

    assert answer.because.startswith("it is in a back-off until 1970-01-01T00:01:00.000Z.")
    assert "after 2 attempts, the last one oom" in answer.because


def test_a_delivery_that_nobody_holds_is_said_to_come_again() -> None:
    """Its node died; nothing is lost."""
    assert "delivered to another one when [bus] ack_wait has passed" in said(place=Place(delivered=True)).because


def test_an_end_has_its_reason_its_detail_and_its_dead_letter() -> None:
    """All that is needed to decide what to do."""
    run = Run(
        invocation="inv", tenant="acme", function="resize", outcome="crashed", reason="oom", detail="killed", attempts=3, ended_ms=1000
    )
    answer = said(run, letter=Letter(stream="FAAS_DEAD", sequence=4, reason="oom", at_ms=1))

    assert answer.state == "ended"
    expected = "crashed: oom at 1970-01-01T00:00:01.000Z after 3 attempts: killed; its event is a dead letter, FAAS_DEAD 4"
    assert answer.because == expected


def test_an_end_before_any_attempt_says_so() -> None:
    """No worker was to blame."""
    run = Run(invocation="inv", tenant="acme", function="resize", outcome="expired", reason="queue_timeout", ended_ms=1000)

    assert "before any attempt" in said(run).because


def test_each_attempt_is_a_link_of_the_chain() -> None:
    """Loads are not: they belong to the attempt that waited for them."""
    tries = tuple(
        Try(record_id=f"inv.{number}{'.load' if kind == 'load' else ''}", invocation="inv", attempt=number, kind=kind, node="one",
            outcome="crashed", reason="oom", detail="killed", start="fork", ended_at="T")
        for number in (1, 2) for kind in ("attempt", "load")
    )  # fmt: skip
    answer = why(RunInFull(run=RUN, tries=tries), [], None)

    assert len(answer.chain) == 2
    assert answer.chain[0] == "attempt 1 on node one (fork; queue 0ms, load 0ms, run 0ms) ended at T as crashed: oom: killed"


def test_an_end_that_is_being_written_names_the_node() -> None:
    """While the bus is away a finished result waits there."""
    answer = why(RunInFull(run=RUN), [Holding(node="two", ending=True)], None)

    assert answer.node == "two"
    assert "writes its end" in answer.because


@pytest.mark.parametrize(("text", "at_ms"), [("1970-01-01T00:00:02Z", 2000), ("1970-01-01T00:00:02+00:00", 2000), (None, 0)])
def test_a_moment_is_rfc_3339(text: str | None, at_ms: int) -> None:
    """Or nothing."""
    assert moment_of("since", text) == at_ms


def test_a_moment_may_be_how_long_ago() -> None:
    """The later one is the shorter ago."""
    assert moment_of("since", "1h") < moment_of("since", "10m") < moment_of("since", 1.0)


def test_what_is_no_moment_is_refused_with_what_would_be_right() -> None:
    """One sentence that says what to type."""
    with pytest.raises(ConfigInvalid, match="since: 'yesterday' is no moment; write how long ago"):
        moment_of("since", "yesterday")
