"""Large bodies that cannot be moved: too large, gone, broken, no room. Each is told in one sentence, and nothing is lost that was accepted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bodies import BUCKET, MIB, REQUIRED, STREAM, nearly_full, serving, used_bytes
from nats.js.object_store import ObjectStore
from node import Node, end, head

import faas
from faas.client import Client
from faas.errors import InvocationFailed, MessageTooLarge, PayloadLost, StoreRefused


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with serving(tmp_path_factory.mktemp("large")) as node:
        yield node


@pytest.fixture(scope="module")
async def client(node: Node) -> AsyncIterator[Client]:
    async with faas.connect(node.info["nats"]) as client:
        yield client


@pytest.fixture
async def store(node: Node) -> ObjectStore:
    """The bucket as any client of NATS sees it."""
    return await node.client.jetstream().object_store(BUCKET)


async def test_a_payload_above_the_limit_of_the_function_is_not_fetched(node: Node, client: Client) -> None:
    """It is known before its turn, by the metadata alone."""
    with pytest.raises(InvocationFailed) as failed:
        await client.invoke("small", b"x" * (2 * MIB + 1))
    reply = await client.outcome(await client.submit("small", b"x" * (2 * MIB + 1)))

    assert (failed.value.outcome, failed.value.code) == ("rejected", "payload_too_large")
    assert (reply.outcome, reply.reason, reply.headers["Faas-Attempt"]) == ("rejected", "payload_too_large", "0")
    assert await client.invoke("small", b"x" * (2 * MIB)) == 2 * MIB


async def test_a_result_above_the_limit_of_the_function_is_too_large(client: Client) -> None:
    """Only there: what is above the bus limit alone is stored."""
    with pytest.raises(InvocationFailed, match="result_too_large"):
        await client.invoke("much", 2 * MIB + 1)

    assert await client.invoke("much", 2 * MIB) == b"m" * (2 * MIB)


async def test_an_object_that_is_gone_rejects_its_event_and_leaves_a_letter(node: Node) -> None:
    """No node will ever find it: it is said at once, and never tried again."""
    headers = {**REQUIRED, "ce-id": "gone", "ce-dataref": f"{BUCKET}/nowhere"}
    message = await node.event("large.size", b"", id="gone", headers=headers)
    answer = await node.request("size", b"", headers=headers)
    letter = await node.letter("size", head(message)["Faas-Invocation"])

    assert end(message) == end(answer) == end(letter) == ("rejected", "event_invalid")
    assert "there is no object nowhere" in json.loads(message.data)["detail"]
    assert head(letter)["ce-dataref"] == f"{BUCKET}/nowhere"


async def test_a_broken_object_rejects_its_event(node: Node, store: ObjectStore) -> None:
    """A function never gets half a payload."""
    info = await store.put("broken", b"b" * MIB)
    await node.client.jetstream().purge_stream(STREAM, subject=f"$O.{BUCKET}.C.{info.nuid}", keep=2)
    answer = await node.request("size", b"", headers={**REQUIRED, "ce-id": "broken", "ce-dataref": f"{BUCKET}/broken"})

    assert end(answer) == ("rejected", "event_invalid")
    assert "lost some of its chunks" in json.loads(answer.data)["detail"]
    assert (await node.request("size", b"abc")).data == b"3"  # its worker had seen nothing of it


@pytest.mark.parametrize("dataref", ["https://example.org/x", "OTHER/x", BUCKET, f"{BUCKET}/", "file:///etc/passwd"])
async def test_a_dataref_to_anywhere_else_is_refused(node: Node, dataref: str) -> None:
    """The node fetches nothing for a stranger from where he cannot reach himself."""
    answer = await node.request("size", b"", headers={**REQUIRED, "ce-id": "else", "ce-dataref": dataref})

    assert end(answer) == ("rejected", "event_invalid")
    assert "dataref" in json.loads(answer.data)["detail"]


async def test_a_call_whose_deadline_passed_is_expired_before_its_payload_is_fetched(node: Node, store: ObjectStore) -> None:
    """Fetching is not running: its clock is the one that ends waiting."""
    await store.put("late", b"l" * MIB)
    headers = {**REQUIRED, "ce-id": "late", "ce-dataref": f"{BUCKET}/late", "Faas-Deadline": "2026-01-01T00:00:00Z"}

    assert end(await node.request("size", b"", headers=headers)) == ("expired", "deadline")


async def test_headers_above_the_limit_are_refused_and_spare_the_connection(client: Client) -> None:
    """They cannot go into the object store."""
    with pytest.raises(MessageTooLarge):
        await client.submit("size", b"x", headers={"X-Huge": "h" * MIB})

    assert await client.invoke("size", b"x") == 1


async def test_a_worker_that_cuts_its_result_off_is_broken(client: Client) -> None:
    """What its answer says and what is in its file differ: nothing of it is believed."""
    with pytest.raises(InvocationFailed, match="protocol_error"):
        await client.invoke("cuts", 1)


async def test_an_outcome_whose_object_is_gone_says_so(node: Node, client: Client, store: ObjectStore) -> None:
    """Not an empty result."""
    ticket = await client.submit("made", 2 * MIB)
    await client.outcome(ticket)
    reply = await node.client.jetstream().get_last_msg("FAAS_OUTCOMES", ticket.outcome_subject)
    await store.delete((reply.headers or {})["Faas-Object"].partition("/")[2])
    with pytest.raises(PayloadLost, match="deleted"):
        await client.outcome(ticket)


async def test_a_retried_event_gets_its_payload_again(node: Node, client: Client) -> None:
    """A worker that died had it in its folder alone."""
    reply = await client.outcome(await client.submit("again", b"1" * (2 * MIB)))

    assert (reply.result, reply.headers["Faas-Attempt"]) == (b"2" * (2 * MIB), "2")


async def test_no_file_is_left_in_a_worker_s_folder(node: Node, client: Client) -> None:
    """The state folder would fill with what nobody reads."""
    body = os.urandom(2 * MIB)
    assert await client.invoke("back", body) == body[::-1]

    assert [path for path in node.state.rglob("spill-*") if path.exists()] == []


async def test_a_full_bucket_is_the_publisher_s_error(node: Node, client: Client) -> None:
    """Nothing is accepted that could not be kept; small events go on."""
    async with nearly_full(node):
        with pytest.raises(StoreRefused, match="maximum bytes"):
            await client.submit("size", b"x" * (4 * MIB))

        assert await client.invoke("size", b"x" * 1000) == 1000


async def test_a_result_waits_for_room_in_the_bucket(node: Node, client: Client) -> None:
    """A finished result is never lost because of its size: it is stored when there is room."""
    async with nearly_full(node):
        ticket = await client.submit("made", 3 * MIB)
        with pytest.raises(TimeoutError):
            await client.outcome(ticket, wait=1.0)
    reply = await client.outcome(ticket)

    assert hashlib.sha256(reply.result).digest() == hashlib.sha256(b"m" * (3 * MIB)).digest()
    assert reply.headers["Faas-Attempt"] == "1"


async def test_a_result_that_waits_for_room_can_be_cancelled(node: Node, client: Client) -> None:
    """Its worker waits with it; whoever has no use for the result any more can say so."""
    async with nearly_full(node):
        ticket = await client.submit("made", 3 * MIB)
        with pytest.raises(TimeoutError):
            await client.outcome(ticket, wait=1.0)
        cancelled = await client.cancel(ticket)

        assert cancelled.cancelled
        assert (await client.outcome(ticket)).outcome == "cancelled"
        assert await client.invoke("made", 1000) == b"m" * 1000


async def test_a_dead_letter_keeps_its_payload_and_is_redriven_with_it(client: Client, node: Node, tmp_path: Path) -> None:
    """Only an end that nothing follows lets a payload go."""
    before = await used_bytes(node)
    ticket = await client.submit("second", b"d" * (2 * MIB))
    failed = await client.outcome(ticket)
    await node.letter("second", ticket.invocation)  # it is written behind the outcome
    (letter,) = [letter async for letter in client.letters("second")]
    reply = await client.outcome(await client.redrive(letter))

    assert (failed.outcome, failed.reason) == ("failed", "error")
    assert reply.result == 2 * MIB
    async with asyncio.timeout(5):
        while await used_bytes(node) > before:
            pass
