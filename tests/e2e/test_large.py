"""Bodies above the bus limit, both ways, as callers and foreign clients see them on a real node; the connection survives each of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bodies import BUCKET, MIB, REQUIRED, serving, used_bytes
from nats.js.object_store import ObjectStore
from node import Node, command, end, head

import faas
from faas.client import Client
from faas.errors import NoSuchFunction
from faas.worker.wire import CHUNK_LIMIT_BYTES


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


@pytest.mark.parametrize("beyond", [-5000, -4097, -4096, -1, 0, 1])
async def test_a_body_around_the_limit_goes_both_ways_whatever_its_headers(client: Client, beyond: int) -> None:
    """One that fits with headers that do not would cost a client its connection, for good."""
    body = os.urandom(MIB + beyond)
    for headers in ({}, {"X-Long": "h" * 3000}, {"X-Longer": "h" * 30_000}):
        assert await client.invoke("back", body, headers=headers) == body[::-1]
        assert (await client.outcome(await client.submit("back", body, headers=headers))).result == body[::-1]

    assert client.nats.is_connected
    assert client.nats.stats["reconnects"] == 0


@pytest.mark.timeout(60)
async def test_64_mib_go_both_ways(client: Client) -> None:
    """`limits.payload` is what bounds a body, not the bus."""
    body = os.urandom(8 * MIB) * 8

    assert await client.invoke("back", body, timeout="40s") == body[::-1]
    assert (await client.outcome(await client.submit("back", body))).result == body[::-1]


async def test_what_was_called_for_leaves_nothing_in_the_bucket(node: Node, client: Client) -> None:
    """It is bounded, and kept for those who cannot say when they are done."""
    before = await used_bytes(node)
    await client.invoke("back", os.urandom(3 * MIB))
    async with asyncio.timeout(5):
        while await used_bytes(node) > before:  # the node lets the payload go behind its answer
            pass


async def test_a_stored_result_stays_and_its_payload_goes(node: Node, client: Client, store: ObjectStore) -> None:
    """Whoever asks for the outcome later gets it; the payload of a submitted event has no second reader."""
    before = await used_bytes(node)
    ticket = await client.submit("back", b"s" * (3 * MIB))
    reply = await client.outcome(ticket)
    named = reply.headers["Faas-Object"]

    assert named.startswith(f"{BUCKET}/{ticket.invocation}.1.")
    assert (await store.get(named.partition("/")[2])).data == reply.result
    async with asyncio.timeout(5):
        while await used_bytes(node) > before + 3.5 * MIB:
            pass


async def test_a_stored_outcome_names_its_object_and_has_no_body(node: Node) -> None:
    """What a foreign client finds: the headers of any outcome, and one more."""
    message = await node.event("large.make", str(2 * MIB).encode(), id="made-1")
    said = head(message)
    usage = json.loads(said["Faas-Usage"])

    assert end(message) == ("succeeded", "")
    assert message.data == b""
    assert said["Faas-Object"].startswith(f"{BUCKET}/")
    assert said["Content-Type"] == "application/octet-stream"
    assert usage[0]["bytes_out"] == 2 * MIB


async def test_a_large_result_is_the_payload_of_the_next_function(node: Node) -> None:
    """`[output]` is an event like any other: a dataref instead of a body."""
    subscription = await node.client.subscribe("large.made")
    first = await node.event("large.make", str(3 * MIB).encode(), id="made-2")
    event = await subscription.next_msg(timeout=5)
    last = await node.outcome(head(first)["Faas-Invocation"])
    await subscription.unsubscribe()

    assert event.data == b""
    assert head(event)["ce-dataref"] == head(first)["Faas-Object"]
    assert (end(last), last.data) == (("succeeded", ""), str(3 * MIB).encode())
    assert json.loads(head(last)["Faas-Usage"])[0]["bytes_in"] == 3 * MIB


async def test_a_foreign_client_sends_an_object_of_its_own(node: Node, store: ObjectStore) -> None:
    """The claim check of CloudEvents, with an ordinary object store client and a name of its choice."""
    await store.put("pictures/cat.png", b"c" * 1000)
    headers = {**REQUIRED, "ce-id": "own-1", "ce-dataref": f"{BUCKET}/pictures/cat.png"}
    stored = await node.event("large.size", b"", id="own-1", headers=headers)
    called = await node.request("size", b"", headers=headers)
    document = {"specversion": "1.0", "source": "/s", "type": "t", "id": "own-2", "dataref": f"{BUCKET}/pictures/cat.png"}
    structured = await node.request("size", json.dumps(document).encode(), headers={"Content-Type": "application/cloudevents+json"})

    assert [message.data for message in (stored, called, structured)] == [b"1000"] * 3
    assert (await store.get("pictures/cat.png")).data == b"c" * 1000  # it is theirs, and stays


async def test_a_reply_to_gets_the_name_of_the_object_too(node: Node, store: ObjectStore) -> None:
    """It hears the outcome as it is stored."""
    subscription = await node.client.subscribe("large.reply")
    outcome = await node.event("large.make", str(2 * MIB).encode(), id="reply-1", headers={"Faas-Reply-To": "large.reply"})
    message = await subscription.next_msg(timeout=5)
    await subscription.unsubscribe()

    assert head(message)["Faas-Object"] == head(outcome)["Faas-Object"]


async def test_a_handler_sees_no_difference(client: Client) -> None:
    """Where its payload came from is the runtime's business."""
    size, extensions, kind = await client.invoke(
        "seen", b'"' + b"x" * (2 * MIB) + b'"', headers={"Content-Type": "text/plain", "ce-mine": "1"}
    )

    assert (size, extensions, kind) == (2 * MIB + 2, {"mine": "1"}, "text/plain")


@pytest.mark.parametrize(("function", "data"), [("size", b"x" * (3 * MIB)), ("json", 2 * MIB)])
async def test_every_way_of_the_client_takes_large_bodies(client: Client, function: str, data: Any) -> None:
    """A caller need not know what the bus takes."""
    direct = await client.invoke(function, data)

    assert [result async for result in client.map(function, [data, data])] == [direct, direct]
    assert (await client.outcome(await client.submit(function, data))).result == direct
    if function == "size":
        assert [item async for item in client.stream(function, data)] == [direct]
        async with client.publish_and_listen("large.size", data) as (_, outcomes):
            assert [reply.result async for _, reply in outcomes] == [direct]


async def test_a_structured_event_goes_as_its_data_and_its_attributes(client: Client) -> None:
    """Its data is inside of its body, which the bus does not take: it is the same event in binary mode."""
    document = {
        "specversion": "1.0",
        "id": "s-1",
        "source": "/s",
        "type": "t",
        "mine": "yes",
        "datacontenttype": "text/plain",
        "data": "x" * MIB,
    }
    headers = {"Content-Type": "application/cloudevents+json"}

    assert await client.invoke("seen", document, headers=headers) == [MIB, {"mine": "yes"}, "text/plain"]
    async with client.publish_and_listen("large.size", document, headers=headers) as (published, outcomes):
        assert [reply.result async for _, reply in outcomes] == [MIB]
    assert published.id == "s-1"


async def test_a_stream_may_be_larger_than_the_bus_together(node: Node, client: Client) -> None:
    """Each item fits; its outcome is an object, which nobody reads who has had every item."""
    before = await used_bytes(node)
    items = [item async for item in client.stream("items", 30)]
    left = await used_bytes(node)

    assert left <= before
    assert items == [b"i" * 100_000] * 30
    assert await client.invoke("items", 30) == b"i" * 3_000_000


@pytest.mark.parametrize("size", [1000, CHUNK_LIMIT_BYTES, CHUNK_LIMIT_BYTES + 1, MIB, 2 * MIB])
async def test_a_stream_of_one_large_result_has_one_item(client: Client, size: int) -> None:
    """Whoever listens need not know what kind of handler it is."""
    assert [item async for item in client.stream("made", size)] == [b"m" * size]


async def test_an_event_sent_again_leaves_no_second_payload(node: Node, client: Client) -> None:
    """A producer that retries with one id would fill the bucket with what nobody asks for."""
    before = await used_bytes(node)
    ticket = await client.submit("size", b"r" * (2 * MIB), id="sent-again")
    assert await client.submit("size", b"r" * (2 * MIB), id="sent-again") == ticket
    assert (await client.outcome(ticket)).result == 2 * MIB
    async with asyncio.timeout(5):
        while await used_bytes(node) > before:
            pass


async def test_an_event_that_nobody_takes_leaves_no_payload(node: Node, client: Client) -> None:
    """It was refused; its sender does not know that it had two parts."""
    before = await used_bytes(node)
    with pytest.raises(NoSuchFunction):
        await client.submit("nobody", b"n" * (2 * MIB))

    assert await used_bytes(node) == before


# ---------------------------------------------------------------- the command line


@pytest.mark.timeout(30)
async def test_the_command_line_takes_and_prints_large_bodies(node: Node, tmp_path: Path) -> None:
    """`@FILE` and a redirect are how people move files."""
    file = tmp_path / "body.txt"
    file.write_bytes(b"ab" * MIB)
    where = ["--nats", node.info["nats"]]
    invoked = await command("invoke", "back", f"@{file}", *where)
    published = await command("publish", "large.back", f"@{file}", "--wait", *where)

    assert (invoked[0], invoked[1].strip()) == (0, "ba" * MIB)
    assert (published[0], published[1].strip()) == (0, "back: succeeded: " + "ba" * MIB)
