"""Every row of the table of exits, durable and synchronous, seen by a foreign client on a real node."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from node import Node, end, head

FAILURES = [
    # function, payload, outcome, reason
    ("double", b'{"n": "x"}', "rejected", "payload_invalid"),
    ("rejects", b"1", "rejected", "rejected_by_handler"),
    ("raises", b"1", "failed", "error"),
    ("notjson", b"1", "failed", "result_invalid"),
    ("large", b"102401", "failed", "result_too_large"),
    ("badload", b"1", "failed", "load_error"),
    ("slowload", b"1", "timed_out", "load_timeout"),
    ("hangs", b"1", "timed_out", "timeout"),
    ("dies", b"1", "crashed", "worker_lost"),
    ("garbage", b"1", "crashed", "protocol_error"),
    ("always", b"1", "failed", "error"),
    ("noenv", b"1", "failed", "environment_failed"),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("function", "payload", "outcome", "reason"), FAILURES, ids=[f"{f[0]}-{f[3]}" for f in FAILURES])
async def test_a_durable_event_that_fails_has_one_outcome_its_usage_and_a_dead_letter(
    node: Node, function: str, payload: bytes, outcome: str, reason: str
) -> None:
    """The promise of the table: nothing ends without a word, and the event is kept with the reason."""
    message = await node.event(f"exits.{function}", payload, id=f"durable-{function}-{reason}", headers={"X-Mine": "kept"})
    said = head(message)

    assert end(message) == (outcome, reason)
    problem = json.loads(message.data)
    assert problem["code"] == reason
    assert problem["detail"]
    assert said["Content-Type"] == "application/problem+json"
    usage = json.loads(said["Faas-Usage"])
    assert [record["record_id"] for record in usage] == [f"{said['Faas-Invocation']}.{n + 1}" for n in range(int(said["Faas-Attempt"]))]
    if reason == "environment_failed":
        assert usage == []
        assert "Faas-Start" not in said
    else:
        assert (usage[-1]["outcome"], usage[-1]["reason"]) == (outcome, reason)
        stored = await node.records(function, said["Faas-Invocation"], at_least=len(usage))
        assert all(record in stored for record in usage)
    letter = await node.letter(function, said["Faas-Invocation"])
    assert end(letter) == (outcome, reason)
    assert letter.data == payload
    assert head(letter)["X-Mine"] == "kept"
    assert head(letter)["Faas-Subject"] == f"exits.{function}"
    assert head(letter)["Faas-Msg-Id"] == f"durable-{function}-{reason}"
    assert head(letter)["Nats-Msg-Id"] == said["Faas-Invocation"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("function", "payload", "outcome", "reason"), FAILURES, ids=[f"{f[0]}-{f[3]}" for f in FAILURES])
async def test_a_synchronous_call_that_fails_is_answered_with_the_reason(
    node: Node, function: str, payload: bytes, outcome: str, reason: str
) -> None:
    """The caller gets the same words, and the error code that NATS micro clients know."""
    message = await node.request(function, payload, wait_s=20)

    assert end(message) == (outcome, reason)
    assert json.loads(message.data)["code"] == reason
    assert int(head(message)["Nats-Service-Error-Code"]) >= 400
    assert head(message)["Nats-Service-Error"]


async def test_a_durable_success_is_stored_published_and_leaves_no_dead_letter(node: Node) -> None:
    """The way that most events go."""
    doubled = await node.client.subscribe("exits.doubled")
    message = await node.event("exits.double", b'{"n": 21}', id="good-1")
    said = head(message)
    event = await doubled.next_msg(timeout=5)
    await doubled.unsubscribe()

    assert end(message) == ("succeeded", "")
    assert json.loads(message.data) == {"n2": 42, "attempt": 1}
    assert said["Faas-Start"] in ("warm", "spare", "fork", "cold")
    assert said["ce-id"] == said["Faas-Invocation"]
    assert said["ce-source"] == "/faas/default/double"
    assert event.data == message.data
    assert head(event)["ce-id"] == said["Faas-Invocation"]
    assert head(event)["Faas-Depth"] == "1"
    assert await node.letters("double", said["Faas-Invocation"]) == []
    (record,) = [r for r in await node.records("double", said["Faas-Invocation"]) if r["kind"] == "attempt"]
    assert record["cpu_us"] > 0
    assert record["memory_peak_bytes"] > 2**20
    assert record["memory_byte_us"] == record["memory_peak_bytes"] * record["run_us"]
    assert record["bytes_in"] == 9
    assert record["bytes_out"] == len(message.data)


async def test_a_synchronous_success_is_the_result(node: Node) -> None:
    """No service error on a success: clients take it for a failure."""
    message = await node.request("double", b'{"n": 4}')

    assert end(message) == ("succeeded", "")
    assert json.loads(message.data)["n2"] == 8
    assert "Nats-Service-Error-Code" not in head(message)


async def test_the_same_event_again_runs_once(node: Node) -> None:
    """A publisher that tries again beyond the stream's dedup window sends the same id in a new message."""
    doubled = []

    async def on(message: object) -> None:
        doubled.append(message)

    subscription = await node.client.subscribe("exits.doubled", cb=on)
    cloud = {"ce-specversion": "1.0", "ce-id": "twice", "ce-source": "tests", "ce-type": "t"}
    stream = node.client.jetstream()
    await stream.publish("exits.double", b'{"n": 1}', headers=cloud)
    first = await node.outcome("twice")
    await stream.publish("exits.double", b'{"n": 1}', headers=cloud)
    await node.event("exits.double", b'{"n": 2}', id="after-twice")
    await subscription.unsubscribe()

    assert len(await node.stored("FAAS_OUTCOMES", f"faas.outcome.default.double.{head(first)['Faas-Invocation']}")) == 1
    assert len([r for r in await node.records("double", head(first)["Faas-Invocation"]) if r["kind"] == "attempt"]) == 1
    assert len([m for m in doubled if head(m)["ce-id"] == head(first)["Faas-Invocation"]]) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("function", "payload", "result"), [("again", b"1", 3), ("flaky", b"1", "there")])
async def test_a_durable_event_is_tried_again_and_every_attempt_is_accounted(
    node: Node, function: str, payload: bytes, result: object
) -> None:
    """`Retry`, and a reason that `retry.on` names: each attempt leaves its record, one outcome names them all."""
    message = await node.event(f"exits.{function}", payload, id=f"retry-{function}")
    usage = json.loads(head(message)["Faas-Usage"])

    assert json.loads(message.data) == result
    assert [record["attempt"] for record in usage] == list(range(1, int(head(message)["Faas-Attempt"]) + 1))
    assert [record["outcome"] for record in usage][:-1] == ["failed"] * (len(usage) - 1)
    stored = await node.records(function, head(message)["Faas-Invocation"], at_least=len(usage))
    assert all(record in stored for record in usage)
    (attempts,) = await node.stored("FAAS_OUTCOMES", f"faas.attempt.default.{function}.{head(message)['Faas-Invocation']}")
    assert json.loads(attempts.data) == usage[:-1]


@pytest.mark.parametrize(("function", "result"), [("again", 3), ("flaky", "there")])
async def test_a_synchronous_call_is_tried_again_while_it_waits(node: Node, function: str, result: object) -> None:
    """The caller sees the last attempt only."""
    message = await node.request(function, b"1")

    assert json.loads(message.data) == result
    assert int(head(message)["Faas-Attempt"]) > 1


async def test_a_durable_event_that_waits_too_long_expires(node: Node) -> None:
    """Its queue clock runs while another holds the only worker; it is never started."""
    await node.event("exits.slow", b"0", id="slow-warm")
    blocker = node.client.jetstream().publish("exits.slow", b"1.5", headers={"Nats-Msg-Id": "slow-block"})
    await blocker
    late = await node.event("exits.slow", b"0", id="slow-late")

    assert end(late) == ("expired", "queue_timeout")
    assert head(late)["Faas-Attempt"] == "0"
    assert head(late)["Faas-Usage"] == "[]"
    assert end(await node.outcome("slow-block")) == ("succeeded", "")


async def test_a_deadline_that_has_passed_expires_both_ways(node: Node) -> None:
    """`Faas-Deadline` is a moment; one in the past starts nothing."""
    past = {"Faas-Deadline": (datetime.now(UTC) - timedelta(seconds=5)).isoformat()}
    durable = await node.event("exits.double", b'{"n": 1}', id="too-late", headers=past)
    synchronous = await node.request("double", b'{"n": 1}', headers=past)

    assert end(durable) == ("expired", "deadline")
    assert end(synchronous) == ("expired", "deadline")
    assert "Faas-Start" not in head(synchronous)


async def test_a_deadline_ahead_ends_what_runs(node: Node) -> None:
    """It is over all clocks, the execution clock too."""
    soon = {"Faas-Deadline": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}
    began = time.monotonic()
    message = await node.request("slow", b"8", headers=soon)

    assert end(message) == ("timed_out", "timeout")
    assert time.monotonic() - began < 6


async def test_a_timeout_of_the_event_may_only_shorten(node: Node) -> None:
    """A sender may be more impatient than the author, never less."""
    shorter = await node.request("slow", b"8", headers={"Faas-Timeout": "200ms"})
    longer = await node.request("hangs", b"1", headers={"Faas-Timeout": "1h"})

    assert end(shorter) == ("timed_out", "timeout")
    assert end(longer) == ("timed_out", "timeout")


async def test_an_undecodable_event_leaves_one_dead_letter_and_is_never_delivered_again(node: Node) -> None:
    """No invocation, so no outcome; but it is kept."""
    broken = {"ce-specversion": "9.9", "ce-id": "broken", "ce-source": "s", "ce-type": "t"}
    before = len(await node.stored("FAAS_DEAD", "faas.dead.default.double"))
    await node.client.jetstream().publish("exits.double", b'{"n": 1}', headers=broken)
    await node.event("exits.double", b'{"n": 1}', id="after-broken")
    letters = (await node.stored("FAAS_DEAD", "faas.dead.default.double"))[before:]

    assert [end(letter) for letter in letters] == [("rejected", "event_invalid")]
    assert "9.9" in head(letters[0])["Faas-Detail"]
    assert "broken" not in node.outcomes


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-specversion": "9.9", "ce-id": "a", "ce-source": "s", "ce-type": "t"},
        {"Content-Type": "application/cloudevents+json"},
        {"Faas-Timeout": "soon"},
        {"Faas-Deadline": "tomorrow"},
        {"Faas-Depth": "deep"},
        {"Faas-Chunk-To": "faas.usage.default.double"},
        {"Faas-Idempotency-Key": "a" * 256},
        {"Faas-Reply-To": "faas.usage.default.double"},
    ],
    ids=lambda headers: next(reversed(headers)),
)
async def test_an_undecodable_synchronous_event_is_rejected(node: Node, headers: dict[str, str]) -> None:
    """What a header asks that cannot be is refused, not ignored."""
    message = await node.request("double", b'{"n": 1}', headers=headers)

    assert end(message) == ("rejected", "event_invalid")
    assert head(message)["Nats-Service-Error-Code"] == "400"


async def test_events_that_cause_events_are_bounded(node: Node) -> None:
    """A loop of functions ends by itself."""
    assert end(await node.request("double", b'{"n": 1}', headers={"Faas-Depth": "16"})) == ("succeeded", "")
    assert end(await node.request("double", b'{"n": 1}', headers={"Faas-Depth": "17"})) == ("rejected", "depth")


async def test_a_payload_above_the_functions_limit_is_rejected_before_a_worker_sees_it(node: Node) -> None:
    """`limits.payload` bounds what comes in as well."""
    message = await node.event("exits.large", b"1" * (101 * 1024), id="large-in")

    assert end(message) == ("rejected", "payload_too_large")
    assert head(message)["Faas-Attempt"] == "0"


async def test_no_dead_letter_where_the_function_wants_none(node: Node) -> None:
    """`retry.dead_letter = false`."""
    message = await node.event("exits.quiet", b"1", id="quiet-1")

    assert end(message) == ("failed", "error")
    assert await node.letters("quiet", head(message)["Faas-Invocation"]) == []


async def test_an_at_most_once_event_publishes_its_result_and_stores_no_outcome(node: Node) -> None:
    """Lowest latency, nothing stored; its usage still is."""
    out = await node.client.subscribe("exits.fast.out")
    await node.client.publish("exits.fast", b'{"a": 1}')
    result = await out.next_msg(timeout=8)
    await out.unsubscribe()
    invocation = head(result)["Faas-Invocation"]

    assert json.loads(result.data) == {"a": 1}
    assert await node.stored("FAAS_OUTCOMES", f"faas.outcome.default.fast.{invocation}") == []
    assert any(r["kind"] == "attempt" for r in await node.records("fast", invocation))


async def test_a_reply_to_gets_the_outcome_too(node: Node) -> None:
    """A durable event's sender can wait without reading the stream."""
    inbox = node.client.new_inbox()
    subscription = await node.client.subscribe(inbox)
    stored = await node.event("exits.double", b'{"n": 3}', id="reply-to", headers={"Faas-Reply-To": inbox})
    reply = await subscription.next_msg(timeout=5)
    await subscription.unsubscribe()

    assert reply.data == stored.data
    assert head(reply)["Faas-Invocation"] == head(stored)["Faas-Invocation"]


async def test_a_submitted_invocation_ends_like_an_event(node: Node) -> None:
    """`faas.submit` is one more durable subject; its PubAck is the acceptance."""
    ack = await node.client.jetstream().publish("faas.submit.default.double", b'{"n": 5}', headers={"Nats-Msg-Id": "submitted"})

    assert ack.stream == "FAAS_EVENTS"
    assert json.loads((await node.outcome("submitted")).data)["n2"] == 10


async def test_any_number_of_functions_may_take_one_event(node: Node) -> None:
    """Each is its own invocation, with its own end."""
    await node.client.jetstream().publish("exits.both", b"5", headers={"Nats-Msg-Id": "both"})
    async with asyncio.timeout(8), node.arrived:
        await node.arrived.wait_for(lambda: len(node.outcomes.get("both", [])) == 2)
    ends = {head(message)["Faas-Function"]: message for message in node.outcomes["both"]}

    assert {name: message.data for name, message in ends.items()} == {"left": b"6", "right": b"4"}
    assert len({head(message)["Faas-Invocation"] for message in ends.values()}) == 2


async def test_the_memory_limit_ends_the_attempt_as_oom(node: Node) -> None:
    """Where control groups are writable; elsewhere `faas functions` says that it is not enforced, and the allocation succeeds."""
    message = await node.event("exits.badoom", b"1", id="oom-1")
    functions = json.loads((await node.client.request(f"faas.node.{node.info['node']}.functions", b"", timeout=5)).data)
    (report,) = [f for f in functions if f["name"] == "badoom"]

    if "memory" in report.get("not_enforced", []):
        assert end(message) == ("succeeded", "")
    else:
        assert end(message) == ("crashed", "oom")


async def test_an_unknown_function_has_no_responder(node: Node) -> None:
    """Nobody waits for an answer that cannot come."""
    import nats.errors

    with pytest.raises(nats.errors.NoRespondersError):
        await node.request("nosuch", b"1")


async def test_an_unknown_function_cannot_be_submitted_to(node: Node) -> None:
    """No PubAck for what nobody will run."""
    import nats.js.errors

    with pytest.raises(nats.js.errors.NoStreamResponseError):
        await node.client.jetstream().publish("faas.submit.default.nosuch", b"1")


async def test_an_id_that_is_no_id_is_refused_before_anything_runs(node: Node) -> None:
    """It would go into every header of the outcome, and be too large for the bus again and again."""
    structured = {"specversion": "1.0", "id": "x" * 400_000, "source": "s", "type": "t", "data": {"n": 1}}
    message = await node.request("double", json.dumps(structured).encode(), headers={"Content-Type": "application/cloudevents+json"})

    assert end(message) == ("rejected", "event_invalid")


async def test_an_id_of_any_characters_is_encoded_in_outcome_and_dead_letter(node: Node) -> None:
    """Header values are printable ASCII, whatever a sender writes."""
    structured = {"specversion": "1.0", "id": "\u00e9 1", "source": "s", "type": "t", "data": 1}
    head_of = {"Content-Type": "application/cloudevents+json"}
    await node.client.jetstream().publish("exits.raises", json.dumps(structured).encode(), headers=head_of)
    message = await node.outcome("%C3%A9%201")
    letter = await node.letter("raises", head(message)["Faas-Invocation"])

    assert head(letter)["Faas-Event-Id"] == "%C3%A9%201"


async def test_the_micro_service_counts_what_it_answered(node: Node) -> None:
    """`nats micro stats faas` is where operators look first."""

    async def counted() -> tuple[int, int]:
        stats = json.loads((await node.client.request("$SRV.STATS.faas", b"", timeout=5)).data)
        (endpoint,) = [e for e in stats["endpoints"] if e["subject"] == "faas.invoke.default.double"]
        return endpoint["num_requests"], endpoint["num_errors"]

    requests, errors = await counted()
    await node.request("double", b'{"n": 1}')
    await node.request("double", b"1")
    await node.client.request(f"faas.node.{node.info['node']}.functions", b"", timeout=5)

    assert await counted() == (requests + 2, errors + 1)


async def test_a_head_that_no_stream_takes_is_a_result_too_large(node: Node) -> None:
    """Published as it is it would be refused, and the handler run again, for ever."""
    message = await node.event("exits.longhead", b"1", id="long-head")

    assert end(message) == ("failed", "result_too_large")


async def test_base64_that_is_none_is_rejected(node: Node) -> None:
    """Letters beyond ASCII are no base64 either, and must not go round as an error of ours."""
    body = '{"specversion":"1.0","id":"x","source":"s","type":"t","data_base64":"\u00e9"}'.encode()
    message = await node.request("double", body, headers={"Content-Type": "application/cloudevents+json"})

    assert end(message) == ("rejected", "event_invalid")


async def test_a_retry_beyond_the_queue_timeout_still_gets_its_attempt(node: Node) -> None:
    """It would otherwise wait for an hour only to be told that it is too old."""
    message = await node.event("exits.patient", b"1", id="patient-1")

    assert end(message) == ("succeeded", "")
    assert message.data == b"2"


@pytest.mark.timeout(30)
async def test_a_flood_of_at_most_once_events_turns_no_caller_away(node: Node) -> None:
    """Nobody waits for those; who asks is answered by its own clock, not with a 503 on their account."""
    await node.request("flooded", b"0")
    for _ in range(1100):
        await node.client.publish("exits.flooded", b"1.5")
    soon = {"Faas-Deadline": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}

    assert end(await node.request("flooded", b"0", headers=soon)) == ("expired", "deadline")
