"""The supervised connection on a real server: what it sends, what it refuses to send, and how it comes back."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from faas.bus.connection import PAYLOAD_SLACK_BYTES, ApiError, Bus, Message, NoStream, encode_head
from faas.bus.messages import decode_head
from faas.bus.server import EmbeddedServer
from faas.config import BusConfig
from faas.errors import AlreadyStored, BusUnavailable, MessageTooLarge, SubjectInvalid


class Inbox:
    """Collects messages, and can be waited on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Message] = asyncio.Queue()

    def __call__(self, message: Message) -> None:
        self._queue.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(5):
            return await self._queue.get()

    @property
    def empty(self) -> bool:
        return self._queue.empty()


class Reconnected:
    """Waits for the next time that a bus says it has come back."""

    def __init__(self, bus: Bus) -> None:
        self._event = asyncio.Event()
        bus.on_reconnect.append(self._event.set)

    async def wait(self) -> None:
        async with asyncio.timeout(9):
            await self._event.wait()
        self._event.clear()


def answering(bus: Bus, group: asyncio.TaskGroup, body: Callable[[Message], bytes]) -> Callable[[Message], None]:
    """A callback that answers each request in a task of its own."""
    return lambda message: void(group.create_task(bus.publish(message.reply, body(message))))


def void(_value: object) -> None:
    """A callback returns nothing."""


async def a_stream(bus: Bus, name: str, *, max_bytes: int = 2**20) -> str:
    await bus.api(f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.>"], "max_bytes": max_bytes}, dict)
    return name


# ---------------------------------------------------------------- publish and request


async def test_a_publish_with_a_pre_encoded_head_arrives_as_written(bus: Bus, tenant: str) -> None:
    """The head is written by ourselves, past nats-py: every byte of it must be what NATS expects."""
    inbox = Inbox()
    await bus.subscribe(f"{tenant}.a", inbox)
    await bus.publish(f"{tenant}.a", b"body", head=encode_head([("One", "1"), ("Zwei", "ü")]), reply="back.here")
    message = await inbox.next()

    assert (message.subject, message.reply, message.data) == (f"{tenant}.a", "back.here", b"body")
    assert message.headers == {"One": "1", "Zwei": "ü"}


async def test_a_publish_without_head_and_body_arrives(bus: Bus, tenant: str) -> None:
    """The empty event is an event."""
    inbox = Inbox()
    await bus.subscribe(f"{tenant}.a", inbox)
    await bus.publish(f"{tenant}.a", b"")
    message = await inbox.next()

    assert (message.data, message.headers, message.reply, message.status) == (b"", None, "", 0)


@given(st.lists(st.tuples(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True), st.text(max_size=40)), max_size=5))
def test_no_value_of_a_header_can_end_its_line(pairs: list[tuple[str, str]]) -> None:
    """A result's content type, an event's id: what a stranger wrote must not become another header."""
    lines = encode_head(pairs).split(b"\r\n")

    assert lines[-1] == b""
    assert len(lines) == len(pairs) + 1
    assert decode_head(b"NATS/1.0\r\n" + encode_head(pairs)).keys() == {name for name, _ in pairs}


async def test_a_request_gets_its_own_reply(bus: Bus, tenant: str) -> None:
    """One inbox serves all requests of a node; replies must not be mixed up."""
    async with asyncio.TaskGroup() as group:
        subscription = await bus.subscribe(f"{tenant}.echo", answering(bus, group, lambda message: message.data))
        replies = await asyncio.gather(*(bus.request(f"{tenant}.echo", b"%d" % n) for n in range(100)))
        await subscription.unsubscribe()

    assert [reply.data for reply in replies] == [b"%d" % n for n in range(100)]


async def test_a_request_that_nobody_answers_ends_at_its_timeout(bus: Bus, tenant: str) -> None:
    """A silent peer must not hold an invocation for ever."""
    await bus.subscribe(f"{tenant}.silent", void)
    with pytest.raises(BusUnavailable, match="no answer within"):
        await bus.request(f"{tenant}.silent", b"", timeout_s=0.05)


async def test_a_request_that_nobody_hears_says_so_at_once(bus: Bus, tenant: str) -> None:
    """No responders is an answer; waiting for the timeout would be 5 s lost."""
    with pytest.raises(NoStream):
        await bus.request(f"{tenant}.nobody", b"")


async def test_two_connections_of_one_node_name_do_not_share_replies(server: EmbeddedServer, tenant: str) -> None:
    """An operator may give two nodes one name; a reply of one must not settle a request of the other."""
    async with asyncio.TaskGroup() as group, Bus.open(server.url, node="same") as one, Bus.open(server.url, node="same") as other:
        await one.subscribe(f"{tenant}.one", answering(one, group, lambda _message: b"one"))
        await one.fence()
        asking = group.create_task(other.request(f"{tenant}.one", b""))
        with pytest.raises(BusUnavailable):
            await one.request(f"{tenant}.nobody", b"", timeout_s=1)

        assert (await asking).data == b"one"


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\tb", "a" * 4000])
async def test_what_is_no_subject_never_reaches_the_wire(bus: Bus, subject: str) -> None:
    """A line break would be a command of its own; a long line costs the connection."""
    with pytest.raises(SubjectInvalid):
        await bus.publish(subject, b"")

    await bus.fence()


async def test_after_a_fence_other_connections_reach_our_subscriptions(bus: Bus, server: EmbeddedServer, tenant: str) -> None:
    """A node says that it is ready; the first request after that must find it."""
    async with asyncio.TaskGroup() as group, Bus.open(server.url, node="caller") as caller:
        for n in range(50):
            await bus.subscribe(f"{tenant}.{n}", answering(bus, group, lambda _message: b"here"))
            await bus.fence()

            assert (await caller.request(f"{tenant}.{n}", b"")).data == b"here"


# ---------------------------------------------------------------- the size guard


@pytest.mark.parametrize("head_bytes", [0, 1000, 60_000])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_the_size_limit_counts_head_and_body_and_spares_the_connection(bus: Bus, tenant: str, head_bytes: int, beyond: int) -> None:
    """Headers and body above the server's limit: it cuts the connection, and the client stays closed for good."""
    inbox = Inbox()
    await bus.subscribe(f"{tenant}.big", inbox)
    head = encode_head([("X", "h" * (head_bytes - 5))]) if head_bytes else b""
    body = b"x" * (bus.body_limit_bytes - len(head) + beyond)
    if beyond > 0:
        with pytest.raises(MessageTooLarge):
            await bus.publish(f"{tenant}.big", body, head=head)
    else:
        await bus.publish(f"{tenant}.big", body, head=head)

        assert len((await inbox.next()).data) == len(body)
    await bus.fence()


async def test_the_limit_follows_the_server(bus: Bus) -> None:
    """An operator sets max_payload; results above it are refused by us, not by a cut connection."""
    assert bus.body_limit_bytes == BusConfig().max_payload_bytes - PAYLOAD_SLACK_BYTES


# ---------------------------------------------------------------- JetStream


async def test_a_stored_message_is_acknowledged_with_its_place(bus: Bus, tenant: str) -> None:
    """Accepted durably is what this acknowledgement says, and nothing else does."""
    await a_stream(bus, tenant)
    first = await bus.store(f"{tenant}.a", b"1", head=encode_head([("Nats-Msg-Id", "m")]))
    again = await bus.store(f"{tenant}.a", b"1", head=encode_head([("Nats-Msg-Id", "m")]))

    assert (first.stream, first.sequence, first.duplicate) == (tenant, 1, False)
    assert again.duplicate


async def test_a_guarded_subject_takes_one_message(bus: Bus, tenant: str) -> None:
    """The outcome guard: of two nodes that finish one invocation, one wins."""
    await a_stream(bus, tenant)
    guard = encode_head([("Nats-Expected-Last-Subject-Sequence", "0")])
    await bus.store(f"{tenant}.outcome", b"first", head=guard)
    with pytest.raises(AlreadyStored):
        await bus.store(f"{tenant}.outcome", b"second", head=guard)

    found = await bus.last_stored(tenant, f"{tenant}.outcome")
    assert found is not None
    assert found.data == b"first"


async def test_a_full_stream_refuses_in_the_servers_words(bus: Bus, tenant: str) -> None:
    """Nothing is dropped silently: the publisher hears that it was not taken."""
    config = {"name": tenant, "subjects": [f"{tenant}.>"], "max_bytes": 1024, "discard": "new"}
    await bus.api(f"STREAM.CREATE.{tenant}", config, dict)
    with pytest.raises(BusUnavailable, match="maximum bytes exceeded"):
        await bus.store(f"{tenant}.a", b"x" * 2048)


async def test_storing_where_no_stream_listens_is_an_error_of_its_own(bus: Bus, tenant: str) -> None:
    """A subject that no stream takes is a mistake of configuration, no passing fault."""
    with pytest.raises(NoStream):
        await bus.store(f"{tenant}.a", b"")


async def test_an_answer_that_is_no_acknowledgement_stores_nothing(bus: Bus, tenant: str) -> None:
    """A responder on the subject may answer anything; it must not pass for durable."""
    async with asyncio.TaskGroup() as group:
        for n, answer in enumerate((b"", b"{}", b"[]", b"\xff")):
            await bus.subscribe(f"{tenant}.{n}", answering(bus, group, lambda _message, answer=answer: answer))
            with pytest.raises(BusUnavailable, match="no stream"):
                await bus.store(f"{tenant}.{n}", b"")


async def test_the_api_answers_typed_or_with_the_servers_error(bus: Bus, tenant: str) -> None:
    """Number and description decide what is done next: create, update, or give up in words."""
    with pytest.raises(ApiError) as caught:
        await bus.api(f"STREAM.INFO.{tenant}", None, dict)

    assert (caught.value.status, caught.value.number) == (404, 10059)
    assert "not found" in caught.value.description


async def test_a_last_message_is_read_both_ways_with_its_headers(bus: Bus, tenant: str) -> None:
    """The leader's answer and a direct get must not differ in form."""
    await bus.api(f"STREAM.CREATE.{tenant}", {"name": tenant, "subjects": [f"{tenant}.>"], "max_bytes": 2**20, "allow_direct": True}, dict)
    await bus.store(f"{tenant}.a", b"body", head=encode_head([("Faas-Usage", "[]"), ("Where", "Köln")]))
    by_leader, direct = await bus.last_stored(tenant, f"{tenant}.a"), await bus.last_direct(tenant, f"{tenant}.a")

    assert by_leader is not None
    assert direct is not None
    assert (by_leader.data, by_leader.sequence) == (direct.data, direct.sequence) == (b"body", 1)
    assert by_leader.headers["Where"] == direct.headers["Where"] == "Köln"
    assert await bus.last_stored(tenant, f"{tenant}.b") is None
    assert await bus.last_direct(tenant, f"{tenant}.b") is None


# ---------------------------------------------------------------- what must not kill it


async def test_an_exception_in_a_callback_ends_nothing(bus: Bus, tenant: str) -> None:
    """nats-py would pass it to the error callback, and an exception there kills the read loop."""
    seen = Inbox()

    def callback(message: Message) -> None:
        if message.data == b"bad":
            raise ValueError("a bug of ours")
        seen(message)

    await bus.subscribe(f"{tenant}.a", callback)
    for body in (b"bad", b"good"):
        await bus.publish(f"{tenant}.a", body)

    assert (await seen.next()).data == b"good"


@pytest.mark.parametrize("block", [b"NATS/1.0", b"NATS/1.0 \xff\xfe\r\n\r\n", b"NATS/1.0 503 \xff\r\n\r\n", b"NATS/1.0\r\n: x\r\n\r\n"])
async def test_an_unreadable_header_block_ends_nothing(bus: Bus, server: EmbeddedServer, tenant: str, block: bytes) -> None:
    """The server passes any bytes on as headers; in nats-py alone such a message, redelivered for ever, ends the read loop each time."""
    inbox = Inbox()
    await bus.subscribe(f"{tenant}.a", inbox)
    await bus.fence()
    stranger = await nats.connect(server.url)
    await stranger._send_command(b"HPUB %s.a %d %d\r\n%sbody\r\n" % (tenant.encode(), len(block), len(block) + 4, block))
    await stranger.flush()
    await stranger.close()
    message = await inbox.next()

    assert message.data == b"body"
    assert "" in (message.headers or {})
    assert bus._client is not None
    assert not bus._client._reading_task.done()


async def test_a_status_header_of_a_publisher_is_no_number_to_trip_over(bus: Bus, tenant: str) -> None:
    """`Status: soon` with an empty body is an ordinary event."""
    inbox = Inbox()
    await bus.subscribe(f"{tenant}.a", inbox)
    for value in ("soon", "²²²", "1234", ""):
        await bus.publish(f"{tenant}.a", b"", head=encode_head([("Status", value)]))

        assert (await inbox.next()).status == 0


async def test_what_arrived_before_an_unsubscribe_is_handed_on(bus: Bus, tenant: str) -> None:
    """At shutdown a delivery that is lost on the way in comes again only after ack_wait."""
    inbox = Inbox()
    subscription = await bus.subscribe(f"{tenant}.a", inbox)
    for n in range(200):
        await bus.publish(f"{tenant}.a", b"%d" % n)
    await subscription.unsubscribe()
    await bus.publish(f"{tenant}.a", b"late")
    await bus.fence()

    assert [(await inbox.next()).data for _ in range(200)] == [b"%d" % n for n in range(200)]
    assert inbox.empty


def test_the_private_parts_of_the_client_are_there() -> None:
    """nats-py is pinned below 2.17; a newer one must show here that it still has what we lean on."""
    client = Client()

    assert all(
        asyncio.iscoroutinefunction(getattr(client, name))
        for name in ("_send_command", "_flush_pending", "_process_headers", "_process_msg")
    )
    assert list(inspect.signature(client._process_msg).parameters) == ["sid", "subject", "reply", "data", "headers"]
    assert list(inspect.signature(client._remove_sub).parameters) == ["sid", "max_msgs"]
    assert (client._flush_queue, client._reading_task, client._reconnection_task, client._transport) == (None, None, None, None)
    assert (client._pending, client._pending_data_size, client._subs) == ([], 0, {})


# ---------------------------------------------------------------- coming back


@pytest.mark.parametrize("how", ["closed", "read loop", "reconnecting"])
async def test_a_dead_client_is_replaced_with_its_subscriptions(bus: Bus, tenant: str, how: str) -> None:
    """Closed for good, dead behind is_connected, or stuck on its way back: the node must not stay deaf."""
    inbox, back = Inbox(), Reconnected(bus)
    await bus.subscribe(f"{tenant}.a", inbox)
    client = bus._client
    assert client is not None
    if how == "closed":
        await client.close()
    elif how == "read loop":
        client._reading_task.cancel()
    else:
        await client.force_reconnect()
        client._reconnection_task.cancel()
    await back.wait()
    await bus.publish(f"{tenant}.a", b"again")

    assert (await inbox.next()).data == b"again"
    assert bus._client is not client


async def test_a_subscription_made_while_the_client_is_dead_is_on_the_next_one(bus: Bus, tenant: str) -> None:
    """A function registered in that second must not be deaf for ever."""
    inbox, back = Inbox(), Reconnected(bus)
    assert bus._client is not None
    await bus._client.close()
    await bus.subscribe(f"{tenant}.a", inbox)
    with pytest.raises(BusUnavailable):
        await bus.publish(f"{tenant}.a", b"")
    await back.wait()
    await bus.publish(f"{tenant}.a", b"heard")

    assert (await inbox.next()).data == b"heard"


async def test_a_killed_server_costs_a_pause_and_nothing_else(tmp_path: Path, tenant: str) -> None:
    """kill -9, started again on the same port and store: connected again, and what was acknowledged is there."""
    async with (
        EmbeddedServer.open(BusConfig(), state=tmp_path, host="127.0.0.1", port=0, token="t") as server,
        Bus.open(server.url, node="n") as bus,
    ):
        back, url = Reconnected(bus), server.url
        await bus.api(f"STREAM.CREATE.{tenant}", {"name": tenant, "subjects": [f"{tenant}.>"], "max_bytes": 2**20}, dict)
        await bus.store(f"{tenant}.a", b"kept")
        os.kill(server.pid, signal.SIGKILL)
        await back.wait()
        found = await bus.last_stored(tenant, f"{tenant}.a")

        assert found is not None
        assert found.data == b"kept"
        assert server.url == url


async def test_nobody_at_the_address_is_said_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address goes into logs and terminals; the token must not."""
    monkeypatch.setattr("faas.bus.connection.CONNECT_S", 0.5)
    with pytest.raises(BusUnavailable, match=r"nats://127\.0\.0\.1:1") as caught:
        async with Bus.open("nats://secret@127.0.0.1:1,nats://other@127.0.0.1:1", node="n"):
            pass

    assert "onnect" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "other" not in str(caught.value)
