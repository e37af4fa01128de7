"""Where events come in: for every function its consumer, its endpoint, and its at-most-once subjects on this node.

Owns how many deliveries of a function this node asks for, and the tasks that take them to their end. What that way is
belongs to the dispatcher.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog

from faas import subjects
from faas.bus.connection import Bus, Message, Subscription, encode_head
from faas.bus.consumers import Consumer
from faas.bus.pull import Delivery, Heartbeats, Puller
from faas.bus.service import Endpoint, Service
from faas.dispatcher import Dispatcher
from faas.errors import AskAgain, FaasError
from faas.model import FunctionVersion
from faas.pool.lease import Draining
from faas.pool.pool import WorkerPool
from faas.scheduling import retry

log = structlog.get_logger()

ANSWERS_WAITING = 1000
"""Synchronous events of one function that wait on this node, and as many at-most-once ones; beyond, they are refused or dropped.

Counted apart: a flood of what nobody waits for must not turn away a caller who does.
"""

ABORT_S = 2.0
"""After the shutdown grace: for the ends of killed attempts to be written."""

_UNAVAILABLE = encode_head([("Nats-Service-Error-Code", "503"), ("Nats-Service-Error", "this node takes no more; ask again")])

_BROKEN = encode_head([("Nats-Service-Error-Code", "500"), ("Nats-Service-Error", "this node failed to answer; its log says why")])


@dataclass(slots=True, frozen=True, kw_only=True)
class Drained:
    """What a stop came to: invocations that ended after its signal, that were given back unstarted, and attempts that were killed."""

    finished: int = 0
    given_back: int = 0
    killed: int = 0


@dataclass(slots=True, eq=False)
class _Inlet:
    """One function's ways in."""

    function: FunctionVersion
    pullers: list[Puller] = field(default_factory=list)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)  # at-most-once subject -> its subscription
    unstarted: set[Delivery] = field(default_factory=set)
    answering: int = 0
    taking: int = 0
    endpoint: Endpoint | None = None
    pending: int = 0  # in the stream behind the last delivery, as that said
    refilling: bool = False  # it is looked at soon
    promised: int = 0  # slots that its events are meant for, asked for or here, but for the one pull of a function without any


class Intake:
    """`open` it, `serve` functions; leaving it drains: what runs may finish within the grace, what waits goes back to the bus."""

    def __init__(
        self, bus: Bus, service: Service, dispatcher: Dispatcher, *, pool: WorkerPool, heartbeats: Heartbeats, group: asyncio.TaskGroup
    ) -> None:
        self._bus, self._service, self._pool = bus, service, pool
        self._dispatcher, self._heartbeats, self._group = dispatcher, heartbeats, group
        self._inlets: dict[tuple[str, str], _Inlet] = {}
        self._loop = asyncio.get_running_loop()
        self._promised = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.drained = Drained()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, bus: Bus, service: Service, dispatcher: Dispatcher, *, pool: WorkerPool, heartbeats: Heartbeats, grace_s: float
    ) -> AsyncIterator[Intake]:
        async with asyncio.TaskGroup() as group:
            intake = cls(bus, service, dispatcher, pool=pool, heartbeats=heartbeats, group=group)
            try:
                yield intake
            finally:
                await intake._drain(grace_s)

    async def serve(self, function: FunctionVersion, consumers: list[Consumer]) -> None:
        """Listen for a function's events from now on, on the consumers of its durable subjects; of another version of one, on what differs."""
        inlet = self._inlets.get(function.key)
        if inlet is None:
            inlet = self._inlets[function.key] = _Inlet(function)
        inlet.function = function
        tenant, name = function.key
        kept = {(puller.consumer.stream, puller.consumer.name): puller for puller in inlet.pullers}
        pullers = []
        for consumer in consumers:
            puller = kept.pop((consumer.stream, consumer.name), None)
            if puller is None:
                puller = await Puller.start(self._bus, consumer, partial(self._deliver, inlet), group=self._group)
            puller.consumer = consumer
            pullers.append(puller)
        inlet.pullers = pullers
        self._refill(inlet)
        for gone in kept.values():
            await gone.stop()
        await self._listen(inlet, [trigger.subject for trigger in function.spec.triggers if trigger.delivery == "at-most-once"])
        if inlet.endpoint is None:
            subject = subjects.invoke(tenant, name)
            inlet.endpoint = await self._service.add_endpoint(f"{tenant}-{name}", subject, partial(self._request, inlet))

    async def _listen(self, inlet: _Inlet, wanted: list[str]) -> None:
        """Take these subjects at most once, and no others."""
        tenant, name = inlet.function.key
        for subject in set(inlet.subscriptions) - set(wanted):
            await inlet.subscriptions.pop(subject).unsubscribe()
        for subject in wanted:
            if subject not in inlet.subscriptions:
                take = partial(self._take, inlet)
                inlet.subscriptions[subject] = await self._bus.subscribe(subject, take, queue=f"faas.{tenant}.{name}")

    async def withdraw(self, key: tuple[str, str]) -> None:
        """Listen for a function's events no more; whoever stops its pool has what waits here given back."""
        inlet = self._inlets.pop(key, None)
        if inlet is None:
            return
        for puller in inlet.pullers:
            await puller.stop()
        self._refill(inlet)  # what it asked for is for others now
        await self._listen(inlet, [])
        await self._service.remove_endpoint(subjects.invoke(*key))

    def pulled(self) -> list[tuple[str, tuple[str, ...]]]:
        """(name, filters) of the consumers on FAAS_EVENTS that must be there as long as this node serves."""
        pullers = [puller for inlet in self._inlets.values() for puller in inlet.pullers if not puller.drained]
        return [
            (puller.consumer.name, puller.consumer.config.filter_subjects)
            for puller in pullers
            if puller.consumer.config is not None and puller.consumer.stream == subjects.EVENTS
        ]

    def forget(self, stream: str) -> None:
        """A stream is gone, and a new one begins at sequence 1: what was settled of the old one says nothing of it."""
        for puller in [puller for inlet in self._inlets.values() for puller in inlet.pullers]:
            if puller.consumer.stream == stream:
                puller.forget()

    # ------------------------------------------------------------ durable

    def _deliver(self, inlet: _Inlet, delivery: Delivery) -> None:
        inlet.unstarted.add(delivery)
        inlet.pending = delivery.num_pending
        task = self._start(self._handle(inlet, delivery))
        self._heartbeats.add(delivery, on_lost=task.cancel)
        self._refill_soon(inlet)

    async def _handle(self, inlet: _Inlet, delivery: Delivery) -> None:
        try:
            await self._dispatcher.handle(delivery, inlet.function, partial(self._started, inlet, delivery))
        except FaasError:
            await delivery.nak(retry.given_back_s(delivery.num_delivered))
            raise
        finally:
            self._heartbeats.discard(delivery)
            self._started(inlet, delivery)

    def _started(self, inlet: _Inlet, delivery: Delivery) -> None:
        if delivery in inlet.unstarted:
            inlet.unstarted.remove(delivery)
            self._refill_soon(inlet)

    def _refill_soon(self, inlet: _Inlet) -> None:
        """Once for all that this turn of the loop brings and starts: one pull for what would be several."""
        if not inlet.refilling:
            inlet.refilling = True
            self._loop.call_soon(self._refill, inlet)

    def _refill(self, inlet: _Inlet) -> None:
        """Have each function show its head: one pull parked, or one event that waits for its turn; the queue itself stays in the stream.

        Whose turn it is, the fair queue says. More is asked for only where more is known to wait, and slots are free that no other
        function has asked for.
        """
        inlet.refilling = False
        wanted = 0
        if self._inlets.get(inlet.function.key) is inlet:
            appetite = self._pool.appetite(inlet.function.key, promised=self._promised - inlet.promised)
            wanted = max(0, min(appetite - len(inlet.unstarted), 1 + inlet.pending))
        promised = len(inlet.unstarted) + wanted if inlet.unstarted else max(0, wanted - 1)
        self._promised += promised - inlet.promised
        inlet.promised = promised
        for puller in inlet.pullers:
            puller.want(wanted)

    # ------------------------------------------------------------ synchronous and at-most-once

    def _request(self, inlet: _Inlet, message: Message) -> None:
        if not message.reply:
            self._take(inlet, message)  # a publish: nobody waits for it
            return
        if refused := self._dispatcher.tenants.not_answered(inlet.function.spec.tenant, message.reply):
            log.warning("request.refused", function=inlet.function.spec.name, reply=message.reply[:200], why=refused)
            return
        if inlet.answering >= ANSWERS_WAITING:
            self._start(self._bus.answer(message.reply, b"", head=_UNAVAILABLE))
            return
        inlet.answering += 1
        self._start(self._answer(inlet, message, message.reply))

    def _take(self, inlet: _Inlet, message: Message) -> None:
        if inlet.taking >= ANSWERS_WAITING:
            log.warning("event.dropped", function=inlet.function.spec.name, subject=message.subject, delivery="at-most-once")
            return
        inlet.taking += 1
        self._start(self._answer(inlet, message, ""))

    async def _answer(self, inlet: _Inlet, message: Message, reply_to: str) -> None:
        unanswered, failure, began_ns = _BROKEN, "not answered", time.monotonic_ns()
        try:
            failure = await self._dispatcher.answer(message, inlet.function, reply_to)
            unanswered = b""
        except (Draining, AskAgain):
            unanswered = _UNAVAILABLE
        finally:
            if reply_to:
                inlet.answering -= 1
            else:
                inlet.taking -= 1
            if inlet.endpoint is not None and reply_to:
                inlet.endpoint.finished(time.monotonic_ns() - began_ns, failure)
            if unanswered and reply_to:
                await self._bus.answer(reply_to, b"", head=unanswered)

    # ------------------------------------------------------------ tasks

    def say(self, subject: str, body: bytes) -> None:
        """Answer a question about this node."""
        if subject:
            self._start(self._bus.answer(subject, body))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._group.create_task(_bounded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drain(self, grace_s: float) -> None:
        """Ask for nothing more, hand back what waits, let what runs finish within the grace, then kill it and write that down."""
        tally, killed = self._dispatcher.tally, 0
        ended, given_back = tally.ended, tally.given_back
        for inlet in self._inlets.values():
            for puller in inlet.pullers:
                await puller.stop()
            await self._listen(inlet, [])
        await self._service.stop()
        self._pool.drain()
        self._dispatcher.drain()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        if self._tasks and (killed := self._pool.kill_leased()):
            log.warning("attempts.killed", attempts=killed, reason="the shutdown grace ran out", grace_s=grace_s)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ABORT_S)
        for task in self._tasks:
            task.cancel()
        self.drained = Drained(finished=tally.ended - ended, given_back=tally.given_back - given_back, killed=killed)


async def _bounded(work: Coroutine[None, None, None]) -> None:
    """The invocation boundary: an error of ours ends one delivery, which comes again, or one answer, and no other."""
    try:
        await work
    except FaasError as error:
        log.error("invocation.not_ended", error=str(error), code=error.code)
    except Exception:
        log.exception("invocation.not_ended")
