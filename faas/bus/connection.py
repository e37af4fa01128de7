"""One supervised connection to NATS: publish, request, store, subscribe, and the JetStream API.

Owns reconnecting, and the rebuilding of a client that is dead without saying so. Knows no function and no stream by name.
Uses two private calls of nats-py (`_send_command`, `_flush_pending`): a publish whose head is encoded once costs a fifth of
a bare reply less than one that encodes seventeen headers each time. `tests/bus/test_connection.py` holds them in place.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import nats
import nats.errors
import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as ClientSubscription

from faas.errors import AlreadyStored, BusUnavailable, FaasError, MessageTooLarge

log = structlog.get_logger()

WATCHDOG_S = 1.0
PAYLOAD_SLACK_BYTES = 4096
"""Kept free below the server's max_payload: a publish above that is answered by cutting the connection, for good."""

NO_RESPONDERS = 503
WRONG_LAST_SEQUENCE = 10071
PENDING_BYTES = 64 * 2**20
_HEAD_LINE = b"NATS/1.0\r\n"


class ApiError(FaasError):
    """JetStream refused a request. `number` is its err_code, `status` the HTTP-like code."""

    code = "api_error"

    def __init__(self, subject: str, *, status: int, number: int, description: str) -> None:
        super().__init__(f"{subject}: {description} ({number})")
        self.status, self.number, self.description = status, number, description


class NoStream(BusUnavailable):
    """Nobody stores this subject."""

    code = "no_stream"


@dataclass(slots=True)
class Message:
    """One message as it came in. `headers` are as received, None where there are none; `status` is NATS' inline status, 0 where there is none."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None
    status: int = 0


class Stored(Struct, frozen=True, kw_only=True, rename={"sequence": "seq"}):
    """JetStream's acknowledgement of a publish."""

    stream: str
    sequence: int
    duplicate: bool = False


class StoredMessage(Struct, frozen=True, kw_only=True):
    """A message read from a stream."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]


class _Error(Struct, frozen=True, kw_only=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(Struct, frozen=True, kw_only=True):
    error: _Error | None = None


class _Ack(Struct, frozen=True, kw_only=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class _Found(Struct, frozen=True, kw_only=True):
    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""


class _GetAnswer(Struct, frozen=True, kw_only=True):
    message: _Found | None = None
    error: _Error | None = None


_ack_decoder = msgspec.json.Decoder(_Ack)
Callback = Callable[[Message], None]
T = TypeVar("T")


def encode_head(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Header lines, ready to be joined with others; line breaks in values become spaces, so that no value can end its line."""
    return "".join(f"{name}: {' '.join(value.splitlines())}\r\n" for name, value in pairs).encode()


def decode_head(raw: bytes) -> dict[str, str]:
    """A block of header lines as JetStream returns it, `NATS/1.0` first."""
    lines = (line.partition(b":") for line in raw.split(b"\r\n")[1:] if line)
    return {name.strip().decode("utf-8", "replace"): value.strip().decode("utf-8", "replace") for name, _, value in lines}


class Subscription:
    """A subscription that outlives the client it was made on."""

    def __init__(self, bus: Bus, subject: str, callback: Callback, queue: str) -> None:
        self._bus, self.subject, self._callback, self.queue = bus, subject, callback, queue
        self._on_client: ClientSubscription | None = None

    async def _attach(self, client: Client) -> None:
        self._on_client = await client.subscribe(
            self.subject, queue=self.queue, cb=self._receive, pending_msgs_limit=-1, pending_bytes_limit=PENDING_BYTES
        )

    async def _receive(self, message: Msg) -> None:
        headers = message.headers
        status = int(headers.get("Status", 0)) if headers and "Status" in headers and not message.data else 0
        try:
            self._callback(Message(message.subject, message.reply, message.data, headers, status))
        except Exception:  # total: an exception here would end the reading of this subject for ever
            log.exception("bus.callback_failed", subject=message.subject)

    async def unsubscribe(self) -> None:
        """Hear nothing more; what arrived already is handed on."""
        self._bus._forget(self)
        if self._on_client is not None:
            with suppress(nats.errors.Error, OSError):
                await self._on_client.unsubscribe()


class Bus:
    """The node's connection. `open` it; every method raises BusUnavailable where the bus does not take or answer in time."""

    def __init__(self, url: str, node: str) -> None:
        self._url, self._inbox = url, f"_INBOX_{node}"
        self._name = f"faas {node}"
        self._client: Client | None = None
        self._subscriptions: list[Subscription] = []
        self._replies: dict[str, asyncio.Future[Message]] = {}
        self._tokens = itertools.count()
        self._loop = asyncio.get_running_loop()
        self.on_reconnect: list[Callable[[], None]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, node: str) -> AsyncIterator[Bus]:
        """Connect, and keep the connection alive until the block is left. Raises BusUnavailable where nobody answers at first."""
        bus = cls(url, node)
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
        async def on_error(error: Exception) -> None:
            log.warning("bus.error", error=str(error) or type(error).__name__)

        async def on_disconnect() -> None:
            log.warning("bus.disconnected")

        async def on_reconnect() -> None:
            log.info("bus.reconnected")
            self._announce()

        async def on_closed() -> None:
            log.info("bus.closed")

        client = Client()
        try:
            async with asyncio.timeout(5):
                await client.connect(
                    self._url,
                    name=self._name,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.25,  # type: ignore[arg-type]  # annotated int, used as a float
                    ping_interval=5,
                    max_outstanding_pings=2,
                    pending_size=16 * 2**20,
                    inbox_prefix=self._inbox.encode(),
                    error_cb=on_error,
                    disconnected_cb=on_disconnect,
                    reconnected_cb=on_reconnect,
                    closed_cb=on_closed,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            with suppress(Exception):
                await client.close()
            raise BusUnavailable(f"no NATS at {_without_token(self._url)}: {error or type(error).__name__}") from error
        self._client = client
        for subscription in self._subscriptions:
            await subscription._attach(client)

    def _announce(self) -> None:
        for callback in self.on_reconnect:
            try:
                callback()
            except Exception:  # total, as nats-py's own callbacks must be
                log.exception("bus.callback_failed", subject="reconnect")

    async def _watch(self) -> None:
        """Rebuild a client whose read loop is dead although it calls itself connected, or that closed for good."""
        while True:
            await asyncio.sleep(WATCHDOG_S)
            client = self._client
            reading = getattr(client, "_reading_task", None)
            dead = client is None or client.is_closed or (client.is_connected and reading is not None and reading.done())
            if not dead:
                continue
            log.error("bus.rebuilt", reason="the client's read loop had ended")
            if client is not None:
                with suppress(Exception):
                    async with asyncio.timeout(1):
                        await client.close()
            try:
                await self._connect()
            except BusUnavailable as error:
                log.warning("bus.unavailable", error=str(error))
            else:
                self._announce()

    async def _close(self) -> None:
        if self._client is not None:
            with suppress(Exception):
                async with asyncio.timeout(2):
                    await self._client.close()
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
        client = self._client
        if client is None or client.is_closed:
            raise BusUnavailable("the connection is closed")
        size = len(head) + len(body)
        if size > self.body_limit_bytes:
            raise MessageTooLarge(subject, size_bytes=size, limit_bytes=self.body_limit_bytes)
        if head:
            block = _HEAD_LINE + head + b"\r\n"
            line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(body)}\r\n".encode()
            command = b"".join((line, block, body, b"\r\n"))
        else:
            command = b"".join((f"PUB {subject} {reply} {len(body)}\r\n".encode(), body, b"\r\n"))
        try:
            await client._send_command(command)
            if client._flush_queue is not None and client._flush_queue.empty():
                await client._flush_pending()
        except nats.errors.Error as error:
            raise BusUnavailable(f"{subject}: {error}") from error

    async def request(self, subject: str, body: bytes, *, head: bytes = b"", timeout_s: float = 5.0) -> Message:
        """Send one message and wait for one reply. Raises BusUnavailable; NoStream where nobody listens."""
        token = str(next(self._tokens))
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._replies[token] = reply
        timer = self._loop.call_later(timeout_s, _expire, reply, subject, timeout_s)
        try:
            await self.publish(subject, body, head=head, reply=f"{self._inbox}.r.{token}")
            message = await reply
        finally:
            timer.cancel()
            del self._replies[token]
        if message.status == NO_RESPONDERS:
            raise NoStream(f"{subject}: nobody listens")
        return message

    def _resolve(self, message: Message) -> None:
        reply = self._replies.get(message.subject.rpartition(".")[2])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call `callback` for every message, also on a client that replaces this one; an exception in it is logged and ends nothing."""
        subscription = Subscription(self, subject, callback, queue)
        if self._client is not None:
            await subscription._attach(self._client)
        self._subscriptions.append(subscription)
        return subscription

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
            ack = _ack_decoder.decode(message.data)
        except msgspec.DecodeError as error:
            raise BusUnavailable(f"{subject}: answered by something that is no stream") from error
        if ack.error is not None:
            if ack.error.err_code == WRONG_LAST_SEQUENCE:
                raise AlreadyStored(f"{subject}: {ack.error.description}")
            raise BusUnavailable(f"{subject}: {ack.error.description} ({ack.error.err_code})")
        return Stored(stream=ack.stream, sequence=ack.seq, duplicate=ack.duplicate)

    async def api(self, suffix: str, request: object, answer: type[T], *, timeout_s: float = 5.0) -> T:
        """One call of `$JS.API.<suffix>`, its answer decoded as `answer`. Raises ApiError with the server's words, BusUnavailable."""
        subject = f"$JS.API.{suffix}"
        message = await self.request(subject, msgspec.json.encode(request) if request is not None else b"", timeout_s=timeout_s)
        try:
            error = msgspec.json.decode(message.data, type=_Answer).error
            if error is None:
                return msgspec.json.decode(message.data, type=answer)
        except msgspec.DecodeError as cause:
            raise BusUnavailable(f"{subject}: no answer of JetStream: {cause}") from cause
        raise ApiError(subject, status=error.code, number=error.err_code, description=error.description)

    async def last_stored(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message of a subject, read through the stream's leader."""
        try:
            found = (await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, _GetAnswer)).message
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


def _without_token(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return f"{scheme or 'nats'}://{rest.rpartition('@')[2]}"
