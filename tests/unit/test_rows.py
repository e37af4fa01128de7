"""From messages of the streams to rows of the projection."""

from __future__ import annotations

import json

import msgspec
import pytest

from faas.accounting.rows import Matching, accepted, buried, ended, is_structured, used
from faas.bus.replay import Consuming, Entry
from faas.identity import invocation_id

KEY = ("acme", "resize")
AT_NS = 1_795_524_408_000_000_000


def entry(subject: str, headers: dict[str, str] | None = None, data: bytes = b"", *, stream: str = "FAAS_EVENTS") -> Entry:
    return Entry(stream, 7, AT_NS, subject, headers or {}, data)


def consumer(*filters: str, function: str = "resize", starts: int = 0) -> Consuming:
    return Consuming(
        name="c", stream="FAAS_EVENTS", tenant="acme", function=function, filters=filters, starts=starts, starts_ms=0, delivered=0, floor=0, pending=0,
        unacknowledged=0,
    )  # fmt: skip


# ---------------------------------------------------------------- events


def test_an_event_is_the_invocation_that_a_node_makes_of_it() -> None:
    """Else its outcome would belong to nothing."""
    (plain,) = accepted(entry("images.a"), [KEY])
    (named,) = accepted(entry("images.a", {"Nats-Msg-Id": "17"}), [KEY])
    binary = {"ce-specversion": "1.0", "ce-id": "a%20b", "ce-source": "/s", "ce-type": "t"}
    (event,) = accepted(entry("images.a", binary), [KEY])

    assert plain.invocation == invocation_id(*KEY, source="FAAS_EVENTS", event_id=f"7.{AT_NS}")
    assert named.invocation == invocation_id(*KEY, source="FAAS_EVENTS", event_id="17")
    assert event.invocation == invocation_id(*KEY, source="/s", event_id="a b")
    assert (event.sequence, event.accepted_ms) == (7, AT_NS // 10**6)


def test_a_structured_event_has_its_identity_in_its_body() -> None:
    """Heads alone are read of all others."""
    body = json.dumps({"specversion": "1.0", "id": "x", "source": "/s", "type": "t"}).encode()
    structured = entry("images.a", {"Content-Type": "application/cloudevents+json"})

    assert is_structured(structured)
    assert not is_structured(entry("images.a", {"Content-Type": "application/json"}))
    assert accepted(structured, [KEY], body)[0].invocation == invocation_id(*KEY, source="/s", event_id="x")


def test_what_cannot_be_decoded_is_no_invocation() -> None:
    """It has no outcome either, so it must not count as waiting for one."""
    assert accepted(entry("images.a", {"ce-id": "x"}), [KEY]) == []


def test_what_comes_out_of_a_schedule_names_its_invocation() -> None:
    """A retry is the same invocation, whatever message brings it."""
    head = {
        "Faas-Invocation": "a" * 26,
        "Faas-First-Seen": "1970-01-01T00:00:01+00:00",
        "Faas-Event-Id": "a%20b",
        "Faas-Subject": "images.a",
    }
    (row,) = accepted(entry("faas.due.acme.resize", head), [KEY])

    assert (row.invocation, row.event_id, row.subject, row.accepted_ms) == ("a" * 26, "a b", "images.a", 1000)
    assert accepted(entry("faas.due.acme.resize"), [KEY]) == []


def test_an_event_is_for_every_function_whose_consumer_filters_it() -> None:
    """And not for one that began later, which will never get it."""
    matching = Matching([consumer("images.*"), consumer("images.a", function="thumb"), consumer("images.>", function="late", starts=8)])

    assert matching.functions(entry("images.a")) == [("acme", "resize"), ("acme", "thumb")]
    assert matching.functions(entry("images.b")) == [("acme", "resize")]
    assert matching.functions(entry("other")) == []


# ---------------------------------------------------------------- ends


def test_an_outcome_is_read_from_its_head() -> None:
    """And why it failed from its body."""
    head = {"Faas-Outcome": "failed", "Faas-Reason": "error", "Faas-Attempt": "2", "Faas-Queue-Us": "5", "Faas-Start": "fork"}
    row = ended(entry("faas.outcome.acme.resize.inv", head), b'{"detail":"no such picture"}')

    assert row is not None
    assert (row.invocation, row.outcome, row.reason, row.detail) == ("inv", "failed", "error", "no such picture")
    assert (row.attempts, row.queue_us, row.start) == (2, 5, "fork")


def test_an_attempt_that_is_tried_again_is_no_end() -> None:
    """It says how many there were, and why the last one ended."""
    head = {"Faas-Outcome": "crashed", "Faas-Reason": "oom", "Faas-Attempt": "1", "Faas-Detail": "killed"}
    row = ended(entry("faas.attempt.acme.resize.inv", head))

    assert row is not None
    assert (row.outcome, row.reason, row.attempts, row.detail) == ("", "oom", 1, "killed")


def test_a_key_that_was_claimed_is_no_attempt() -> None:
    """Its event says that there is an invocation; a claim whose node died before that is none that waits."""
    assert ended(entry("faas.attempt.acme.resize.inv", {"Faas-Attempt": "0", "Faas-Event-Id": "order-1"}, b"[]")) is None


def test_an_event_with_an_idempotency_key_is_the_invocation_of_its_key() -> None:
    """Else what ran and what was accepted would be two, and the balance would show one as lost."""
    (found,) = accepted(entry("faas.submit.acme.resize", {"Faas-Idempotency-Key": "order-1", "Nats-Msg-Id": "key.x"}), [("acme", "resize")])

    assert (found.invocation, found.event_id) == (invocation_id("acme", "resize", source="", event_id="order-1"), "order-1")


@pytest.mark.parametrize("subject", ["faas.outcome.acme.resize", "faas.other.a.b.c", "x"])
def test_other_subjects_are_passed_over(subject: str) -> None:
    """The stream may hold what another version writes."""
    assert ended(entry(subject)) is None


def test_a_usage_message_is_its_records() -> None:
    """Retractions are another matter, and garbage is none."""
    one = {"record_id": "inv.1", "invocation_id": "inv", "attempt": 1, "kind": "attempt", "tenant": "acme", "function": "resize",
           "ended_at": "2026-11-24T12:46:48.000000Z", "meters": {"tokens": 3}}  # fmt: skip
    body = msgspec.json.encode([one, {**one, "record_id": "r", "record_type": "retraction"}])
    (row,) = used(entry("faas.usage.acme.resize", data=body, stream="FAAS_USAGE"))

    assert (row.record_id, row.meters, row.ended_ms) == ("inv.1", '{"tokens":3}', 1_795_524_408_000)
    assert used(entry("faas.usage.acme.resize", data=b"{", stream="FAAS_USAGE")) == []


def test_a_dead_letter_names_its_invocation() -> None:
    """Whoever asks for a run is told where its event lies."""
    letter = buried(entry("faas.dead.acme.resize", {"Faas-Invocation": "inv", "Faas-Reason": "error"}, stream="FAAS_DEAD"))

    assert letter is not None
    assert (letter.invocation, letter.stream, letter.sequence) == ("inv", "FAAS_DEAD", 7)
    assert buried(entry("faas.dead.acme.resize")) is None
