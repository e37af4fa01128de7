"""The pull loop: from a durable consumer to deliveries, and the lease that each of them is.

One inbox for ever, pulls that are parked and renewed on reconnect, missed heartbeat, 408 and 409. `fetch()` of nats-py stalls
for its whole timeout when the server restarts. A delivery's lease is kept on this node's own clock: JetStream
redelivers `ack_wait` after the last sign of life, whatever happened here meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import structlog

from faas.bus.connection import ApiError, Bus, Message, Subscription
from faas.bus.consumers import Consumer, restore_consumer
from faas.bus.listing import NO_STREAM
from faas.errors import BusUnavailable

log = structlog.get_logger()

EXPIRES_S = 120.0
HEARTBEAT_S = 15.0
HEARTBEAT_SLACK_S = 1.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.25, 5.0
"""Without a back-off a missing consumer is asked thousands of times a second."""
ALL_PULLS_ENDED = ("Consumer Deleted", "Leadership Change", "Server Shutdown")
"""409s that end every pull of a consumer; any other one ends the pull that it answers."""


class Delivery:
    """One message of a stream, leased to this node until it is acknowledged, given back, or `lost`."""

    __slots__ = (
        "_bus", "_extended_monotonic", "_unsettled", "ack_wait_s", "consumer", "data", "headers", "may_repeat", "num_delivered", "num_pending",
        "reply", "sequence", "stored_at_ns", "stream", "subject",
    )  # fmt: skip

    def __init__(self, bus: Bus, message: Message, consumer: Consumer, *, unsettled: set[int]) -> None:
        tokens = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<ns>.<pending>; newer servers put domain and account before.
        offset = 2 if len(tokens) == 9 else 4
        self._bus, self.reply = bus, message.reply
        self.subject, self.headers, self.data = message.subject, message.headers, message.data
        self.stream, self.consumer = tokens[offset], tokens[offset + 1]
        self.num_delivered, self.sequence = int(tokens[offset + 2]), int(tokens[offset + 3])
        self.stored_at_ns, self.num_pending = int(tokens[offset + 5]), int(tokens[offset + 6])
        self.ack_wait_s = consumer.ack_wait_s
        self.may_repeat = consumer.may_repeat or self.sequence <= consumer.repeats_upto
        self._extended_monotonic = time.monotonic()
        self._unsettled = unsettled
        unsettled.add(self.sequence)

    @property
    def stored_at(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return self.stored_at_ns / 1e9

    def is_lost(self, now_monotonic: float) -> bool:
        """Whether JetStream may have given it to another node at this moment."""
        return now_monotonic > self._extended_monotonic + self.ack_wait_s

    @property
    def lost(self) -> bool:
        return self.is_lost(time.monotonic())

    def mark_lost(self) -> None:
        """From now on it is another node's, and nothing more is said about it."""
        self._extended_monotonic = -math.inf

    async def ack(self) -> None:
        """Done; where an outcome is stored a lost acknowledgement costs a look-up, not a run."""
        if not self.lost:
            self._unsettled.discard(self.sequence)
            self._bus.publish_soon(self.reply, b"+ACK")

    async def ack_sync(self) -> None:
        """Done, and the server has said so. Raises BusUnavailable."""
        if not self.lost:
            await self._bus.request(self.reply, b"+ACK")
            self._unsettled.discard(self.sequence)

    async def nak(self, delay_s: float = 0.0) -> None:
        """Give it back, to come again after so long; where the bus is away it comes again by itself."""
        await self._say(b"-NAK " + json.dumps({"delay": round(delay_s * 1e9)}).encode() if delay_s > 0 else b"-NAK")

    async def term(self, reason: str) -> None:
        """Never deliver it again; the reason is in the server's advisory."""
        if not self.lost and self._bus.connected:
            self._unsettled.discard(self.sequence)
        await self._say(b"+TERM " + " ".join(reason.split())[:200].encode("utf-8", "replace"))

    async def _say(self, word: bytes) -> None:
        # A late word would act on another node's delivery, and one that waits for the connection may be late when it goes out.
        if not self.lost and self._bus.connected:
            await self._bus.publish(self.reply, word)

    async def extend(self, now_monotonic: float) -> None:
        """A sign of life. It counts from this moment, and only once the server has said that it arrived. Raises BusUnavailable.

        A connection that was cut without a word goes on taking what is sent for a quarter of a minute: to the server this node is dead meanwhile.
        """
        if not self._bus.connected:
            return
        await self._bus.request(self.reply, b"+WPI", timeout_s=self.ack_wait_s)
        if self._extended_monotonic != -math.inf:
            self._extended_monotonic = max(self._extended_monotonic, now_monotonic)


class Heartbeats:
    """Extends every live delivery each third of `ack_wait`, and tells those whose lease has passed. Idle while there are none."""

    def __init__(self, ack_wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tick_s, self._clock = ack_wait_s / 3, clock
        self._live: dict[Delivery, Callable[[], object]] = {}
        self._any = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, ack_wait_s: float) -> AsyncIterator[Heartbeats]:
        async with asyncio.TaskGroup() as group:
            heartbeats = cls(ack_wait_s)
            ticking = group.create_task(heartbeats._run())
            try:
                yield heartbeats
            finally:
                ticking.cancel()

    def add(self, delivery: Delivery, on_lost: Callable[[], object]) -> None:
        """Hold a delivery from now on; `on_lost` is called once where its lease passes all the same."""
        self._live[delivery] = on_lost
        self._any.set()

    def discard(self, delivery: Delivery) -> None:
        """It has ended."""
        self._live.pop(delivery, None)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                if not self._live:
                    self._any.clear()
                    await self._any.wait()
                await asyncio.sleep(self._tick_s)
                self.tick(group)

    def tick(self, group: asyncio.TaskGroup) -> None:
        """One round: extend what lives, as tasks of the group, and report what is lost; no answer is waited for, so that none holds this up."""
        for delivery in list(self._live):
            now = self._clock()
            if not delivery.is_lost(now):
                group.create_task(self._extend(delivery, now))
                continue
            log.warning("delivery.lost", stream=delivery.stream, consumer=delivery.consumer, sequence=delivery.sequence)
            delivery.mark_lost()
            on_lost = self._live.pop(delivery, None)
            if on_lost is not None:
                on_lost()

    async def _extend(self, delivery: Delivery, now_monotonic: float) -> None:
        try:
            await delivery.extend(now_monotonic)
        except BusUnavailable as error:
            if delivery in self._live:
                log.warning("delivery.not_extended", consumer=delivery.consumer, error=str(error))


class Puller:
    """Keeps as many messages asked for as `want` says. Made by `start`, ended by `stop`; its pulls are tasks of the group given.

    No more than that arrive; only after a connection was cut may pulls of before it be answered too, within `EXPIRES_S`.
    """

    def __init__(self, bus: Bus, consumer: Consumer, on_delivery: Callable[[Delivery], None], *, group: asyncio.TaskGroup) -> None:
        self._bus, self.consumer, self._on_delivery, self._group = bus, consumer, on_delivery, group
        self._inbox = f"{bus.new_inbox()}."
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"
        self._loop = asyncio.get_running_loop()
        self._wanted = self._asked = 0
        self._heard_monotonic = time.monotonic()
        self._backoff_s = FIRST_BACKOFF_S
        self._resting: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None
        self._stopped = self._missing = self._drained = False
        self._seen = consumer.floor
        self._unsettled: set[int] = set()

    @classmethod
    async def start(cls, bus: Bus, consumer: Consumer, on_delivery: Callable[[Delivery], None], *, group: asyncio.TaskGroup) -> Puller:
        """A puller that asks for nothing yet."""
        puller = cls(bus, consumer, on_delivery, group=group)
        puller._subscription = await bus.subscribe(f"{puller._inbox}*", puller._receive)
        bus.on_reconnect.append(puller._renew)
        puller._check()
        return puller

    async def stop(self) -> None:
        """Ask for nothing more. What the server has sent already still comes to `on_delivery` until this returns.

        What it had assigned and not yet sent is dropped there, and comes again after `ack_wait`: JetStream has no way to call a pull back.
        """
        self._stopped = True
        for timer in (self._watch, self._resting):
            if timer is not None:
                timer.cancel()
        if self._renew in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self._renew)
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def want(self, messages: int) -> None:
        """Have so many asked for and not yet delivered, at least half of it at any time; fewer than now takes effect as they arrive."""
        self._wanted = messages
        self._ask()

    @property
    def asked(self) -> int:
        """How many messages the server has been asked for and has not sent."""
        return self._asked

    @property
    def drained(self) -> bool:
        """Whether its consumer is gone for good, and nothing will come any more."""
        return self._drained

    @property
    def floor(self) -> int:
        """The sequence up to which all that came here is settled."""
        return min(self._unsettled) - 1 if self._unsettled else self._seen

    def forget(self) -> None:
        """Its stream is gone: whatever stream has that name next is read from its beginning."""
        self._seen = 0
        self._unsettled = set()  # what is still open here settles into the old one

    def _ask(self) -> None:
        missing = self._wanted - self._asked
        # Not before half is used up: one pull for several messages, where each would cost a message of its own.
        if missing > 0 and 2 * missing >= self._wanted and self._resting is None and not self._stopped and self._bus.connected:
            self._asked += missing
            self._pull(missing)

    def _pull(self, batch: int) -> None:
        body = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (batch, EXPIRES_S * 1e9, HEARTBEAT_S * 1e9)
        try:
            self._bus.publish_soon(self._next, body, reply=f"{self._inbox}{batch}")
        except BusUnavailable:
            self._asked = max(0, self._asked - batch)
            self._rest()

    def _receive(self, message: Message) -> None:
        self._heard_monotonic = time.monotonic()
        if message.subject.startswith(self._inbox):  # not by its status alone: an event may have a header of that name
            if message.status not in (0, 100):
                self._end(message)
            return
        delivery = Delivery(self._bus, message, self.consumer, unsettled=self._unsettled)
        self._asked = max(0, self._asked - 1)
        self._seen = max(self._seen, delivery.sequence)
        self._backoff_s = FIRST_BACKOFF_S
        self._on_delivery(delivery)

    def _end(self, message: Message) -> None:
        """A pull has ended without all that it asked for: 408 and 409 say how many are open, 503 that nobody serves the consumer."""
        headers = message.headers or {}
        reason = headers.get("Description", "")
        if "Nats-Pending-Messages" in headers:
            self._asked -= int(headers["Nats-Pending-Messages"])
        elif reason.startswith(ALL_PULLS_ENDED) or message.status == 503:
            self._asked = 0
        else:  # this pull alone was refused, and got nothing
            self._asked -= int(message.subject.removeprefix(self._inbox))
        self._asked = max(0, self._asked)
        if message.status == 408:
            self._ask()
            return
        log.warning("pull.ended", consumer=self.consumer.name, status=message.status, reason=reason)
        self._missing = self._missing or message.status == 503 or reason.startswith("Consumer Deleted")
        self._rest()

    def _rest(self) -> None:
        if self._resting is None and not self._stopped:
            self._resting = self._loop.call_later(self._backoff_s, self._rested)
            self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)

    def _rested(self) -> None:
        self._resting = None
        if self._missing:
            self._group.create_task(self._restore())
        else:
            self._ask()

    async def _restore(self) -> None:
        """Nobody serves the consumer: it was deleted, or the server has only just started."""
        try:
            restored = await restore_consumer(self._bus, self.consumer, self.floor)
        except (ApiError, BusUnavailable) as error:
            log.warning("pull.not_restored", consumer=self.consumer.name, error=str(error))
            if isinstance(error, ApiError) and error.number == NO_STREAM:
                self.forget()
            self._rest()
            return
        self._missing = False
        if restored is not None:
            self.consumer = msgspec.structs.replace(self.consumer, repeats_upto=restored)
            self._ask()
        else:
            log.info("pull.drained", consumer=self.consumer.name)
            self._stopped = self._drained = True

    def _renew(self) -> None:
        """The server has forgotten what was asked for."""
        self._asked = 0
        self._heard_monotonic = time.monotonic()
        self._ask()

    def _check(self) -> None:
        """A pull that is parked hears a heartbeat; one that hears nothing is forgotten by the server, or its consumer is gone."""
        if self._asked and time.monotonic() - self._heard_monotonic > 2 * HEARTBEAT_S + HEARTBEAT_SLACK_S:
            log.warning("pull.silent", consumer=self.consumer.name)
            self._asked = 0
            self._heard_monotonic = time.monotonic()
            self._missing = True
            self._rest()
        self._watch = self._loop.call_later(2 * HEARTBEAT_S, self._check)
