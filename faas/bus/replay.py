"""What the streams hold, read forward from a sequence in batches, and how the consumers of functions stand. Knows no function code and keeps nothing.

By an ephemeral pull consumer that lives as long as one reading: without bodies where only heads are wanted, which a direct get cannot do.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import msgspec
from msgspec import Struct

from faas.bus.connection import ApiError, Bus, Message
from faas.bus.listing import NO_STREAM, OWNER
from faas.bus.messages import FoundMessage
from faas.errors import BusUnavailable

ANSWER_S = 5.0
UNUSED_S = 30
"""After so long the server forgets a consumer whose reader is gone."""


class Entry(Struct, frozen=True):
    """One stored message; `at_ns` is when, by the server's clock. `headers` is empty where there are none."""

    stream: str
    sequence: int
    at_ns: int
    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def at_ms(self) -> int:
        return self.at_ns // 1_000_000


class Extent(Struct, frozen=True, kw_only=True):
    """What a stream holds: `created` tells it from another of the same name; `first_ts` is when its first message came, RFC 3339."""

    created: str
    first: int
    last: int
    first_ts: str
    messages: int = 0
    consumers: int = 0
    retention: str = "limits"


class Consuming(Struct, frozen=True, kw_only=True):
    """The consumer of a function: what it filters, and how far it is."""

    name: str
    stream: str
    tenant: str
    function: str
    filters: tuple[str, ...]
    starts: int  # sequence that it began with, 0 where none is said
    starts_ms: int  # or the moment, for one that began with what was new then
    delivered: int
    floor: int
    pending: int
    unacknowledged: int

    @property
    def open(self) -> int:
        return self.pending + self.unacknowledged


class _State(Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0
    first_ts: str = ""
    messages: int = 0
    consumer_count: int = 0
    subjects: dict[str, int] | None = None


class _Settings(Struct, frozen=True):
    name: str = ""
    retention: str = "limits"


class _Info(Struct, frozen=True):
    created: str
    state: _State
    config: _Settings = _Settings()


class _Streams(Struct, frozen=True):
    total: int = 0
    streams: tuple[_Info, ...] | None = ()


class _Config(Struct, frozen=True):
    metadata: dict[str, str] | None = None
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] | None = None
    opt_start_seq: int = 0
    deliver_policy: str = "all"


class _Place(Struct, frozen=True):
    stream_seq: int = 0


class _Consumer(Struct, frozen=True):
    name: str
    stream_name: str = ""
    created: str = ""
    config: _Config = _Config()
    delivered: _Place = _Place()
    ack_floor: _Place = _Place()
    num_pending: int = 0
    num_ack_pending: int = 0


class _Page(Struct, frozen=True):
    total: int = 0
    consumers: tuple[_Consumer, ...] | None = ()


class _Anything(Struct):
    pass


async def extents(bus: Bus) -> dict[str, Extent]:
    """What each stream holds, by name. Raises BusUnavailable."""
    found: dict[str, Extent] = {}
    seen = 0
    while True:
        try:
            page = await bus.api("STREAM.LIST", {"offset": seen}, _Streams)
        except ApiError as error:
            raise BusUnavailable(str(error)) from error
        listed = page.streams or ()
        seen += len(listed)
        for info in listed:
            state = info.state
            found[info.config.name] = Extent(
                created=info.created,
                first=state.first_seq,
                last=state.last_seq,
                first_ts=state.first_ts,
                messages=state.messages,
                consumers=state.consumer_count,
                retention=info.config.retention,
            )
        if not listed or seen >= page.total:
            return found


async def counts(bus: Bus, stream: str, subject: str) -> dict[str, int]:
    """How many messages a stream holds, by subject, of those that `subject` matches: for some thousand, since all are named in one answer."""
    try:
        return (await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject}, _Info)).state.subjects or {}
    except ApiError as error:
        raise BusUnavailable(str(error)) from error


async def count(bus: Bus, stream: str, subject: str) -> int:
    """How many messages a stream holds that `subject` matches, however many there are: as a consumer that is never asked says it."""
    config = {"deliver_policy": "all", "ack_policy": "none", "mem_storage": True, "num_replicas": 1, "filter_subject": subject,
              "inactive_threshold": UNUSED_S * 10**9}  # fmt: skip
    try:
        made = await bus.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}, _Consumer)
        await bus.api(f"CONSUMER.DELETE.{stream}.{made.name}", None, _Anything)
    except ApiError as error:
        raise BusUnavailable(str(error)) from error
    return made.num_pending


async def consuming(bus: Bus, stream: str) -> list[Consuming]:
    """The consumers of functions on a stream. Raises BusUnavailable."""
    found: list[Consuming] = []
    seen = 0
    while True:
        try:
            page = await bus.api(f"CONSUMER.LIST.{stream}", {"offset": seen}, _Page)
        except ApiError as error:
            if error.number == NO_STREAM:
                return []
            raise BusUnavailable(str(error)) from error
        listed = page.consumers or ()
        seen += len(listed)
        found += [_consuming(consumer) for consumer in listed if (consumer.config.metadata or {}).get(OWNER)]
        if not listed or seen >= page.total:
            return found


def _consuming(consumer: _Consumer) -> Consuming:
    config = consumer.config
    tenant, _, function = (config.metadata or {})[OWNER].partition("/")
    return Consuming(
        name=consumer.name,
        stream=consumer.stream_name,
        tenant=tenant,
        function=function,
        filters=(*(config.filter_subjects or ()), *filter(None, [config.filter_subject])),
        starts=config.opt_start_seq,
        starts_ms=moment_ms(consumer.created) if config.deliver_policy not in ("all", "by_start_sequence") else 0,
        delivered=consumer.delivered.stream_seq,
        floor=consumer.ack_floor.stream_seq,
        pending=consumer.num_pending,
        unacknowledged=consumer.num_ack_pending,
    )


class Replay:
    """Reads streams, one at a time. `open` it; its inbox is its own."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._inbox = bus, f"{bus.new_inbox()}."
        self._pulls = itertools.count()
        self._came: asyncio.Queue[Message] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus) -> AsyncIterator[Replay]:
        replay = cls(bus)
        subscription = await bus.subscribe(f"{replay._inbox}*", replay._came.put_nowait)
        try:
            yield replay
        finally:
            await subscription.unsubscribe()

    async def after(self, stream: str, sequence: int, *, batch: int, heads: bool = False, since: str = "") -> AsyncIterator[list[Entry]]:
        """All that a stream holds behind a sequence, in its order, at most `batch` at once; `heads` leaves out bodies.

        `since` (RFC 3339) begins at a moment instead. Raises BusUnavailable.
        """
        start = {"deliver_policy": "by_start_time", "opt_start_time": since} if since else {
            "deliver_policy": "by_start_sequence", "opt_start_seq": sequence + 1,
        }  # fmt: skip
        config = {
            **start, "ack_policy": "none", "mem_storage": True, "num_replicas": 1, "headers_only": heads, "max_deliver": 1,
            "inactive_threshold": UNUSED_S * 10**9, "replay_policy": "instant",
        }  # fmt: skip
        try:
            name = (await self._bus.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}, _Consumer)).name
        except ApiError as error:
            raise BusUnavailable(str(error)) from error
        try:
            while entries := await self._pull(stream, name, batch):
                yield entries
                if len(entries) < batch:
                    return
        finally:
            with suppress(ApiError, BusUnavailable):  # forgotten by itself, after UNUSED_S
                await self._bus.api(f"CONSUMER.DELETE.{stream}.{name}", None, _Anything)

    async def _pull(self, stream: str, consumer: str, batch: int) -> list[Entry]:
        reply = f"{self._inbox}{next(self._pulls)}"
        found: list[Entry] = []
        body = b'{"batch":%d,"no_wait":true}' % batch
        await self._bus.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", body, reply=reply)
        try:
            async with asyncio.timeout(ANSWER_S):
                while len(found) < batch:
                    message = await self._came.get()
                    if message.subject == reply:
                        return found  # 404 and 408: there is no more
                    entry = _entry(message)
                    if entry is not None and message.reply.split(".")[_offset(message.reply) + 1] == consumer:  # else of a pull given up
                        found.append(entry)
        except TimeoutError:
            raise BusUnavailable(f"{stream} was not read within {ANSWER_S:g} s") from None
        return found


def _offset(reply: str) -> int:
    """Where the stream's name stands in a reply of JetStream; newer servers put domain and account before."""
    return 2 if reply.count(".") == 8 else 4


def _entry(message: Message) -> Entry | None:
    tokens = message.reply.split(".")
    if len(tokens) < 9 or tokens[1] != "ACK":
        return None
    offset = _offset(message.reply)
    return Entry(tokens[offset], int(tokens[offset + 3]), int(tokens[offset + 5]), message.subject, message.headers or {}, message.data)


async def body_at(bus: Bus, stream: str, sequence: int) -> bytes:
    """The body of one message; b"" where it is gone."""
    found = await _at(bus, stream, sequence)
    return base64.b64decode(found.data) if found is not None else b""


async def is_there(bus: Bus, stream: str, sequence: int) -> bool:
    """Whether a stream still holds a message."""
    return await _at(bus, stream, sequence) is not None


async def _at(bus: Bus, stream: str, sequence: int) -> FoundMessage | None:
    """Through the stream's leader: a stream of somebody else may take no direct get."""
    try:
        return (await bus.get(stream, {"seq": sequence})).message
    except ApiError as error:
        if error.status == 404:
            return None
        raise BusUnavailable(str(error)) from error


async def due_ms(bus: Bus, stream: str, subject: str) -> int:
    """When a message schedule fires, in milliseconds since the epoch; 0 where there is none for a moment. Source: NATS ADR-51."""
    try:
        found = await bus.last_stored(stream, subject)
    except ApiError:
        return 0
    text = found.headers.get("Nats-Schedule", "") if found is not None else ""
    return moment_ms(text.removeprefix("@at ").strip()) if text.startswith("@at ") else 0


def moment_ms(text: str) -> int:
    """RFC 3339 in milliseconds since the epoch; 0 for what is none."""
    try:
        return round(msgspec.json.decode(b'"' + text.encode() + b'"', type=datetime).timestamp() * 1000)
    except (msgspec.DecodeError, ValueError):
        return 0
