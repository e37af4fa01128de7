"""One supervised connection to NATS: publish, request, store, subscribe, and the JetStream API.

Owns reconnecting, and the rebuilding of a client that is dead without saying so. Knows no function and no stream by name.
A head is encoded once where it repeats: seventeen headers encoded each time cost a fifth of a bare reply.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec
import nats
import nats.errors
import structlog
from nats.aio.subscription import Subscription as ClientSubscription

from faas.bus.client import UNSENT_BYTES, DirectClient, give_up
from faas.bus.messages import (
    WRONG_LAST_SEQUENCE,
    Answer,
    ApiError,
    GetAnswer,
    Message,
    NoStream,
    Stored,
    StoredMessage,
    decode_ack,
    decode_head,
    encode_head,
)
from faas.errors import AlreadyStored, BusUnavailable, FaasError, MessageTooLarge, StoreRefused, SubjectInvalid
from faas.subjects import node_inbox, problem_with_reply
from faas.telemetry import without_token

__all__ = ["ApiError", "Bus", "Callback", "Message", "NoStream", "Stored", "StoredMessage", "Subscription", "encode_head"]

log = structlog.get_logger()

CONNECT_S = 5.0
WATCHDOG_S = 1.0
AWAY_S = 30.0
"""After so long without a connection the client is made anew: closing a socket to a frozen host can hold nats-py's reconnecting up for a quarter of an hour."""
PAYLOAD_SLACK_BYTES = 4096
"""Kept free below the server's max_payload: a publish above that is answered by cutting the connection, for good."""
LINE_LIMIT_BYTES = 3800
"""Of subject and reply together: the server cuts the connection at a protocol line of 4,096."""
NO_RESPONDERS = 503
GET_S, GET_TIMES = 2.0, 4

Callback = Callable[[Message], None]
T = TypeVar("T")


class Subscription:
    """A subscription that outlives the client it was made on."""

    def __init__(self, bus: Bus, subject: str, callback: Callback, *, queue: str) -> None:
        self._bus, self.subject, self._callback, self.queue = bus, subject, callback, queue
        self._client: DirectClient | None = None
        self._on_client: ClientSubscription | None = None

    async def _attach(self, client: DirectClient) -> None:
        if client is self._client:
            return
        self._client = client
        try:
            self._on_client = await client.receive(self.subject, self.queue, self._receive)
        except nats.errors.BadSubjectError as error:
            raise SubjectInvalid(f"{self.subject!r} cannot be subscribed to") from error
        except (nats.errors.Error, OSError):
            self._client = None  # this client is dead; the one that replaces it is subscribed too

    def _receive(self, message: Message) -> None:
        try:
            self._callback(message)
        except Exception:  # total: an exception here would end the reading of this subject for ever
            log.exception("bus.callback_failed", subject=message.subject)

    async def unsubscribe(self) -> None:
        """Hear nothing more; what arrived already is handed on before this returns, as long as the bus answers within a second."""
        self._bus._forget(self)
        subscription, client = self._on_client, self._client
        if subscription is None or client is None:
            return
        self._on_client = None
        with suppress(nats.errors.Error, OSError, BusUnavailable):
            if client.is_connected and not self._bus.silent:
                await client._send_command(f"UNSUB {subscription._id}\r\n".encode())
                await self._bus.fence(timeout_s=1.0)
            await subscription.unsubscribe()


class Bus:
    """The node's connection. `open` it; every method raises BusUnavailable where the bus does not take or answer in time."""

    def __init__(self, url: str, node: str, *, seed: Callable[[], str] = str, inbox: str = "") -> None:
        self._url, self._seed = url, seed
        self._inbox = f"{inbox or node_inbox(node)}.{secrets.token_hex(8)}"  # of this connection alone: two nodes may be given one name
        self._name = f"faas {node}"
        self._client: DirectClient | None = None
        self._subscriptions: list[Subscription] = []
        self._replies: dict[str, asyncio.Future[Message]] = {}
        self._tokens = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._connected_monotonic = 0.0
        self.silent = False  # a fence was not answered in time: a shutdown of many subscriptions waits once, not for each
        self._last_error, self._refused = "", False
        self._connecting = asyncio.timeout(None)
        self._ended = asyncio.Event()  # the client is of no more use, and says so
        self.now: Callable[[], float] = time.time  # seconds since the epoch; by the bus's clock where that is asked (bus/clock.py)
        self.on_reconnect: list[Callable[[], object]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, node: str, seed: Callable[[], str] = str, inbox: str = "") -> AsyncIterator[Bus]:
        """Connect, and keep the connection alive until the block is left. Raises BusUnavailable where nobody answers at first.

        `seed` gives the nkey to show, "" for none; `inbox` is what its inboxes begin with, where that is not a node's. Raises what `seed` does.
        """
        bus = cls(url, node, seed=seed, inbox=inbox)
        await bus._connect()
        try:
            await bus.subscribe(f"{bus._inbox}.r.*", bus._resolve)
            async with asyncio.TaskGroup() as group:
                watchdog = group.create_task(bus._watch())
                try:
                    yield bus
                finally:
                    watchdog.cancel()
        finally:
            await bus._close()

    # ------------------------------------------------------------ the client underneath

    async def _connect(self) -> None:
        client = DirectClient()
        seed = self._seed()  # anew each time: it may be another by now
        try:
            async with asyncio.timeout(CONNECT_S) as self._connecting:
                await client.reach(self._url, name=self._name, inbox=self._inbox, seed=seed, hear=partial(self._hear, client))
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await give_up(client)
            said = str(error) or self._last_error or type(error).__name__
            raise BusUnavailable(f"no NATS at {without_token(self._url)}: {said.removeprefix('nats: ')}") from error
        self._client = client
        self._last_error, self._refused = "", False
        self._connected_monotonic = time.monotonic()
        for subscription in list(self._subscriptions):
            await subscription._attach(client)

    def _hear(self, client: DirectClient, what: str, said: str) -> None:
        """What the client says of its connection; one that is refused or closed is replaced at once, the key may be another by now."""
        if what == "error":
            if said != self._last_error:  # while it tries again, four times a second
                log.warning("bus.error", error=said)
            self._last_error = said
            if "authorization violation" in said.lower():
                self._refused = self._refused or client is self._client
                if client is not self._client is not None:
                    self._connecting.reschedule(0)  # it would go on with the key that it has; that of the next try may be another
        elif what == "reconnected":
            log.info("bus.reconnected")
            self._last_error = ""
            self._announce()
        else:
            log.log(logging.INFO if what == "closed" else logging.WARNING, f"bus.{what}")
        if client is self._client and (what == "closed" or self._refused):
            self._ended.set()

    def _announce(self) -> None:
        for callback in list(self.on_reconnect):
            try:
                callback()
            except Exception:  # total, as nats-py's own callbacks must be
                log.exception("bus.callback_failed", subject="reconnect")

    async def _watch(self) -> None:
        """Rebuild a client that has closed for good, or is dead although it calls itself connected or reconnecting."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCHDOG_S):
                    await self._ended.wait()
            self._ended.clear()
            reason = self._dead(time.monotonic())
            if not reason:
                continue
            log.error("bus.rebuilt", reason=reason)
            if self._client is not None:
                await give_up(self._client)
            try:
                await self._connect()
            except FaasError as error:
                log.warning("bus.unavailable", error=str(error))
            else:
                log.info("bus.reconnected")
                self._announce()

    def _dead(self, now_monotonic: float) -> str:
        """Why the client will never be of use again, or ""."""
        client = self._client
        if client is None or client.is_closed:
            return "the client had closed"
        if client.is_connected:
            self._connected_monotonic = now_monotonic
            reading = client._reading_task
            return "the client's read loop had ended" if reading is not None and reading.done() else ""
        reconnecting = client._reconnection_task
        if client.is_reconnecting and reconnecting is not None and reconnecting.done():
            return "the client had given up reconnecting"
        if client.is_reconnecting and self._refused:
            return "the bus refused its key"
        return "no connection for long" if now_monotonic - self._connected_monotonic > AWAY_S else ""

    async def _close(self) -> None:
        if self._client is not None:
            await give_up(self._client, within_s=2.0)
        for waiting in self._replies.values():
            if not waiting.done():
                waiting.set_exception(BusUnavailable("the connection was closed"))

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def body_limit_bytes(self) -> int:
        """The largest head and body together that `publish` takes."""
        payload = self._client.max_payload if self._client is not None else 2**20
        return payload - PAYLOAD_SLACK_BYTES

    # ------------------------------------------------------------ publish and request

    async def publish(self, subject: str, body: bytes, *, head: bytes = b"", reply: str = "") -> None:
        """Send one message; `head` is made by `encode_head`. While the connection is away it is kept, up to 16 MiB. Raises MessageTooLarge."""
        client = self._usable(subject, len(head) + len(body), reply)
        try:
            await client.send(subject, body, head=head, reply=reply)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"{subject}: {error}") from error

    async def answer(self, reply: str, body: bytes, *, head: bytes = b"") -> None:
        """Send an answer where whoever asked wants it; no asker makes a node publish to the runtime's own subjects, or to those of NATS."""
        if problem := problem_with_reply(reply):
            log.warning("bus.not_answered", reply=reply[:200], problem=problem)
            return
        await self.publish(reply, body, head=head)

    def publish_soon(self, subject: str, body: bytes, *, reply: str = "") -> None:
        """The same for a small message without a head, at once: what is said thousands of times a second needs no task of its own."""
        self._usable(subject, len(body), reply).send_soon(subject, body, reply=reply)

    def _usable(self, subject: str, size: int, reply: str) -> DirectClient:
        """The client, for a message that may be sent on it."""
        client = self._client
        if client is None or client.is_closed:
            raise BusUnavailable("the connection is closed")
        if " " in subject or not subject.isprintable() or len(subject) + len(reply) > LINE_LIMIT_BYTES or not subject:
            raise SubjectInvalid(f"{subject[:200]!r} is no subject, or too long")
        if client._pending_data_size > UNSENT_BYTES and not client.is_connected:
            raise BusUnavailable(f"{subject}: the connection is away, and what waits for it is at its limit")
        if size > self.body_limit_bytes:
            raise MessageTooLarge(subject, size_bytes=size, limit_bytes=self.body_limit_bytes)
        return client

    async def request(self, subject: str, body: bytes, *, head: bytes = b"", timeout_s: float = 5.0, reply_to: str = "") -> Message:
        """Send one message and wait for one reply. Raises BusUnavailable; NoStream where nobody listens. "" as subject: we are answered by ourselves."""
        reply_to = reply_to or self.new_reply()
        token = reply_to.rpartition(".")[2]
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._replies[token] = reply
        timer = self._loop.call_later(timeout_s, _expire, reply, subject or "the bus", timeout_s)
        try:
            await self.publish(subject or reply_to, body, head=head, reply=reply_to)
            message = await reply
        finally:
            timer.cancel()
            del self._replies[token]
        if message.status == NO_RESPONDERS:
            raise NoStream(f"{subject}: nobody listens")
        return message

    def _resolve(self, message: Message) -> None:
        self.silent = False
        reply = self._replies.get(message.subject.rpartition(".")[2])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def fence(self, *, timeout_s: float = 5.0) -> None:
        """Wait until the server has done all that was sent before, subscriptions included. Raises BusUnavailable.

        By a message to ourselves: nats-py's `flush` is no fence, and one that is given up kills the read loop.
        """
        try:
            await self.request("", b"", timeout_s=timeout_s)
        except BusUnavailable:
            self.silent = True
            raise

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call `callback` for every message, also on a client that replaces this one; an exception in it is logged and ends nothing."""
        subscription = Subscription(self, subject, callback, queue=queue)
        self._subscriptions.append(subscription)
        if self._client is not None:
            try:
                await subscription._attach(self._client)
            except SubjectInvalid:
                self._forget(subscription)
                raise
        return subscription

    def new_reply(self) -> str:
        """Where the answer to one `request` goes, for whoever has to name the question later."""
        return f"{self._inbox}.r.{next(self._tokens)}"

    def new_inbox(self) -> str:
        """A subject that only this connection listens on."""
        return f"{self._inbox}.p.{next(self._tokens)}"

    def _forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    # ------------------------------------------------------------ JetStream

    async def store(self, subject: str, body: bytes, *, head: bytes = b"", timeout_s: float = 5.0) -> Stored:
        """Publish to a stream and wait for its acknowledgement. Raises AlreadyStored (a guard refused), NoStream, BusUnavailable."""
        message = await self.request(subject, body, head=head, timeout_s=timeout_s)
        try:
            ack = decode_ack(message.data)
        except msgspec.DecodeError as error:
            raise BusUnavailable(f"{subject}: answered by something that is no stream") from error
        if ack.error is not None:
            if ack.error.err_code == WRONG_LAST_SEQUENCE:
                raise AlreadyStored(f"{subject}: {ack.error.description}")
            raise StoreRefused(f"{subject}: {ack.error.description} ({ack.error.err_code})")
        if not ack.stream:
            raise BusUnavailable(f"{subject}: answered by something that is no stream")
        return Stored(stream=ack.stream, sequence=ack.seq, duplicate=ack.duplicate)

    async def api(self, suffix: str, request: object, answer: type[T], *, timeout_s: float = 5.0) -> T:
        """One call of `$JS.API.<suffix>`, its answer decoded as `answer`. Raises ApiError with the server's words, BusUnavailable."""
        subject = f"$JS.API.{suffix}"
        message = await self.request(subject, msgspec.json.encode(request) if request is not None else b"", timeout_s=timeout_s)
        try:
            error = msgspec.json.decode(message.data, type=Answer).error
            if error is None:
                return msgspec.json.decode(message.data, type=answer)
        except msgspec.DecodeError as cause:
            raise BusUnavailable(f"{subject}: no answer of JetStream: {cause}") from cause
        raise ApiError(subject, status=error.code, number=error.err_code, description=error.description)

    async def get(self, stream: str, which: object) -> GetAnswer:
        """One stored message, through the stream's leader. Asked again where nobody answers: servers that choose a leader drop the question."""
        for _ in range(GET_TIMES - 1):
            with suppress(BusUnavailable):
                return await self.api(f"STREAM.MSG.GET.{stream}", which, GetAnswer, timeout_s=GET_S)
        return await self.api(f"STREAM.MSG.GET.{stream}", which, GetAnswer, timeout_s=GET_S)

    async def last_stored(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message of a subject, read through the stream's leader."""
        try:
            found = (await self.get(stream, {"last_by_subj": subject})).message
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        if found is None:
            return None
        head = decode_head(base64.b64decode(found.hdrs)) if found.hdrs else {}
        return StoredMessage(subject=found.subject, sequence=found.seq, data=base64.b64decode(found.data), headers=head)

    async def last_direct(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message of a subject by a direct get, which any replica answers, one that lags too."""
        message = await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"")
        if message.status == 404:
            return None
        headers = message.headers or {}
        if message.status or "Nats-Sequence" not in headers:
            raise BusUnavailable(f"direct get of {subject}: status {message.status} {headers.get('Description', '')}")
        return StoredMessage(
            subject=headers.get("Nats-Subject", subject), sequence=int(headers["Nats-Sequence"]), data=message.data, headers=headers
        )


def _expire(reply: asyncio.Future[Message], subject: str, timeout_s: float) -> None:
    if not reply.done():
        reply.set_exception(BusUnavailable(f"{subject}: no answer within {timeout_s:g} s"))
