"""Bodies above the bus limit, both ways, as callers and foreign clients see them on a real node; the connection survives each of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.js.object_store import ObjectStore
from node import SHORT_LEASE, Node, command, end, head, running, write_function

import faas
from faas.client import Client
from faas.errors import InvocationFailed, MessageTooLarge, NoSuchFunction, PayloadLost, StoreRefused
from faas.worker.wire import CHUNK_LIMIT_BYTES

MIB = 2**20
BUCKET = "FAAS_PAYLOADS"
STREAM = f"OBJ_{BUCKET}"
REQUIRED = {"ce-specversion": "1.0", "ce-source": "/test", "ce-type": "t"}
FUNCTIONS = {
    "back": ("def handle(event: bytes) -> bytes:\n    return event[::-1]\n", '[[trigger]]\nsubject = "large.back"\n'),
    "size": (
        "def handle(event: bytes):\n    return len(event)\n",
        '[[trigger]]\nsubject = "large.size"\n[[trigger]]\nsubject = "large.made"\n',
    ),
    "made": (
        "def handle(event: int):\n    return b'm' * event\n",
        '[[trigger]]\nsubject = "large.make"\n[output]\npublish = "large.made"\n',
    ),
    "json": ("def handle(event: int):\n    return {'text': 'j' * event}\n", ""),
    "items": ("def handle(event: int):\n    for _ in range(event):\n        yield b'i' * 100_000\n", ""),
    "small": ("def handle(event: bytes):\n    return len(event)\n", '[[trigger]]\nsubject = "large.small"\n[limits]\npayload = "2MiB"\n'),
    "much": ("def handle(event: int):\n    return b'm' * event\n", '[limits]\npayload = "2MiB"\n'),
    "seen": ("import faas\ndef handle(event: faas.Event):\n    return [len(event.data), event.extensions, event.datacontenttype]\n", ""),
    "again": (
        "import os, pathlib\ndef handle(event: bytes):\n    mark = pathlib.Path(os.environ['MARK'])\n    if mark.exists():\n"
        "        return b'2' * len(event)\n    mark.touch()\n    os._exit(1)\n",
        '[[trigger]]\nsubject = "large.again"\n[retry]\nbackoff = "10ms"\n',
    ),
    "second": (
        "import os, pathlib\ndef handle(event: bytes):\n    mark = pathlib.Path(os.environ['MARK'] + '2')\n    if mark.exists():\n"
        "        return len(event)\n    mark.touch()\n    raise ValueError('first')\n",
        "",
    ),
    "cuts": (
        "import os, threading, pathlib\nfrom faas.worker import wire\ndef handle(event):\n    write = wire._write\n"
        "    def cut(directory, file, body):\n        write(directory, file, body)\n        os.truncate(os.path.join(directory, file), 10)\n"
        "    wire._write = cut\n    return b'x' * (2 * 2**20)\n",
        "[retry]\nmax_attempts = 1\n",
    ),
}


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root = tmp_path_factory.mktemp("large")
    for name, (code, spec) in FUNCTIONS.items():
        write_function(root / "functions", name, code, f'{spec}[env]\nMARK = "{root / "mark"}"\n')
    async with running(root / "functions", root / "state", environ=SHORT_LEASE) as node:
        await node.watch()
        yield node


@pytest.fixture(scope="module")
async def client(node: Node) -> AsyncIterator[Client]:
    async with faas.connect(node.info["nats"]) as client:
        yield client


@pytest.fixture
async def store(node: Node) -> ObjectStore:
    """The bucket as any client of NATS sees it."""
    return await node.client.jetstream().object_store(BUCKET)


async def used_bytes(node: Node) -> int:
    return int((await node.client.jetstream().stream_info(STREAM)).state.bytes)


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


async def test_a_stream_may_be_larger_than_the_bus_together(client: Client) -> None:
    """Each item fits; its outcome is an object."""
    items = [item async for item in client.stream("items", 30)]

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


# ---------------------------------------------------------------- what cannot be


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


async def test_a_structured_event_above_the_limit_says_how_to_send_it(client: Client) -> None:
    """Its data is inside of its body."""
    document = {"specversion": "1.0", "id": "s", "source": "/s", "type": "t", "data": "x" * MIB}
    with pytest.raises(MessageTooLarge, match="binary mode"):
        await client.publish("large.size", document, headers={"Content-Type": "application/cloudevents+json"})


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
    js = node.client.jetstream()
    config = (await js.stream_info(STREAM)).config
    used = await used_bytes(node)
    await node.client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps({**config.as_dict(), "max_bytes": used + MIB}).encode())
    try:
        with pytest.raises(StoreRefused, match="maximum bytes"):
            await client.submit("size", b"x" * (4 * MIB))

        assert await client.invoke("size", b"x" * 1000) == 1000
    finally:
        await node.client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps(config.as_dict()).encode())


async def test_a_result_waits_for_room_in_the_bucket(node: Node, client: Client) -> None:
    """A finished result is never lost because of its size: it is stored when there is room."""
    js = node.client.jetstream()
    config = (await js.stream_info(STREAM)).config
    used = await used_bytes(node)
    await node.client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps({**config.as_dict(), "max_bytes": used + MIB}).encode())
    ticket = await client.submit("made", 3 * MIB)
    with pytest.raises(TimeoutError):
        await client.outcome(ticket, wait=1.0)
    await node.client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps(config.as_dict()).encode())
    reply = await client.outcome(ticket)

    assert hashlib.sha256(reply.result).digest() == hashlib.sha256(b"m" * (3 * MIB)).digest()
    assert reply.headers["Faas-Attempt"] == "1"


async def test_a_result_that_waits_for_room_can_be_cancelled(node: Node, client: Client) -> None:
    """Its worker waits with it; whoever has no use for the result any more can say so."""
    js = node.client.jetstream()
    config = (await js.stream_info(STREAM)).config
    used = await used_bytes(node)
    await node.client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps({**config.as_dict(), "max_bytes": used + MIB}).encode())
    try:
        ticket = await client.submit("made", 3 * MIB)
        with pytest.raises(TimeoutError):
            await client.outcome(ticket, wait=1.0)
        cancelled = await client.cancel(ticket)

        assert cancelled.cancelled
        assert (await client.outcome(ticket)).outcome == "cancelled"
        assert await client.invoke("made", 1000) == b"m" * 1000
    finally:
        await node.client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps(config.as_dict()).encode())


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
