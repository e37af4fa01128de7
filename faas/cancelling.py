"""Cancels an invocation wherever it is: running or queued on any node, waiting in a stream, in a back-off. Answers whether the cancel won.

For a durable one the outcome `cancelled` is stored first, under the guard that every outcome has: so there is one winner. Then every node is
told, and whoever runs it stops it. One that nothing stores is stopped where it runs, and that is its end.
"""

from __future__ import annotations

import asyncio
import calendar
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import msgspec
import structlog

from faas import subjects
from faas.bus import consumers
from faas.bus.cancels import Cancels
from faas.bus.cloudevents import decode
from faas.bus.connection import Bus, Message
from faas.bus.outcomes import Outcomes
from faas.bus.reading import messages_of
from faas.errors import FaasError
from faas.identity import invocation_id
from faas.model import Ended, EventInvalid, FunctionSpec, Outcome, Phases
from faas.runs import Cancelled
from faas.unended import Unended

log = structlog.get_logger()

ASK_S = 0.3
"""For other nodes to say that they hold it; one that holds it answers at once."""
LOOKED_AT = 100_000
"""Of a function's waiting events so many are looked through for one that no node holds."""
REQUESTS = "faas.cancel.>"
HOLDING = "faas.node.any.holds"
"""A question to all nodes."""


class Cancelling:
    """Answers `faas.cancel...` on this node, and stops here what was cancelled anywhere. `open` it."""

    def __init__(self, bus: Bus, outcomes: Outcomes, unended: Unended, *, group: asyncio.TaskGroup) -> None:
        self._bus, self._outcomes, self._unended, self._group = bus, outcomes, unended, group
        self._cancels = Cancels(bus, lambda invocation, until: unended.cancel(invocation, until=until))
        self._tasks: set[asyncio.Task[None]] = set()
        self.functions: Callable[[tuple[str, str]], FunctionSpec | None] = lambda key: None

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, outcomes: Outcomes, unended: Unended) -> AsyncIterator[Cancelling]:
        async with asyncio.TaskGroup() as group:
            cancelling = cls(bus, outcomes, unended, group=group)
            try:
                yield cancelling
            finally:
                for task in cancelling._tasks:
                    task.cancel()

    async def listen(self) -> None:
        """From now on; once the streams stand."""
        await self._cancels.watch()
        self._bus.on_reconnect.append(lambda: self._start(self._cancels.read()))
        await self._bus.subscribe(HOLDING, self._asked)
        await self._bus.subscribe(REQUESTS, self._requested, queue="faas-cancel")

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _asked(self, message: Message) -> None:
        held = self._unended.holds(message.data.decode("utf-8", "replace"))
        if held and message.reply:
            self._start(self._say(message.reply, held.encode()))

    def _requested(self, message: Message) -> None:
        self._start(self._answer(message))

    async def _say(self, subject: str, body: bytes) -> None:
        try:
            await self._bus.publish(subject, body)
        except FaasError as error:
            log.warning("cancel.not_answered", error=str(error))

    async def _answer(self, message: Message) -> None:
        tokens = message.subject.split(".")
        try:
            answer = await self.cancel(*tokens[2:]) if len(tokens) == 5 else Cancelled(cancelled=False, known=False)
        except FaasError as error:
            log.warning("cancel.failed", subject=message.subject, error=str(error))
            answer = Cancelled(cancelled=False, error=str(error))
        if message.reply:
            await self._say(message.reply, msgspec.json.encode(answer))

    async def cancel(self, tenant: str, function: str, invocation: str) -> Cancelled:
        """End an invocation as `cancelled`, unless it has ended. Raises BusUnavailable."""
        held = self._unended.holds(invocation) or await self._held_elsewhere(invocation)
        spec = self.functions((tenant, function))
        for_s = float(spec.limits.queue_timeout_s) if spec is not None else 86_400.0
        if held == "answered":
            await self._cancels.put(invocation, for_s=for_s)
            return Cancelled(cancelled=True)
        found = await self._outcomes.find(tenant, function, invocation, leader=True)
        if found is not None:
            return Cancelled(cancelled=False, outcome=found.outcome)
        tried = await self._outcomes.attempts(tenant, function, invocation, leader=True)
        if not held and not tried.records and not (spec is not None and await self._waits(spec, invocation)):
            return Cancelled(cancelled=False, known=False)
        outcome = Outcome(
            invocation_id=invocation,
            tenant=tenant,
            function=function,
            version="",
            event_id="",
            attempt=len(tried.records),
            ended=Ended(reason="cancelled", detail="somebody cancelled it"),
            phases=Phases(),
        )
        won = await self._outcomes.store(outcome, tried.records) is not None
        await self._cancels.put(invocation, for_s=for_s)
        if won:
            log.info("invocation.cancelled", invocation_id=invocation, tenant=tenant, function=function)
            return Cancelled(cancelled=True)
        found = await self._outcomes.find(tenant, function, invocation, leader=True)
        return Cancelled(cancelled=False, outcome=found.outcome if found is not None else "")

    async def _held_elsewhere(self, invocation: str) -> str:
        """Whether another node holds it, and how."""
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe(inbox, lambda message: heard.put_nowait(message.data))
        try:
            await self._bus.publish(HOLDING, invocation.encode(), reply=inbox)
            async with asyncio.timeout(ASK_S):
                return (await heard.get()).decode()
        except TimeoutError:
            return ""
        finally:
            await subscription.unsubscribe()

    async def _waits(self, spec: FunctionSpec, invocation: str) -> bool:
        """Whether it is among the events that wait in a stream for the function. At most LOOKED_AT are looked through."""
        left = LOOKED_AT
        for subject, after in await consumers.unsettled(self._bus, spec):
            async for message in messages_of(self._bus, subjects.EVENTS, subject, after=after, limit=left):
                left -= 1
                if _is(message.headers, message.data, spec, invocation=invocation, place=(subjects.EVENTS, message.sequence)):
                    return True
        return False


def _is(headers: dict[str, str], data: bytes, spec: FunctionSpec, *, invocation: str, place: tuple[str, int]) -> bool:
    """Whether a stored event is this invocation of a function."""
    if headers.get("Faas-Invocation") == invocation and "Faas-First-Seen" in headers:
        return True
    stamp = headers.get("Nats-Time-Stamp", "")
    own = {name: value for name, value in headers.items() if name not in _PLACE}
    decoded = decode(own, data, source=place[0], event_id=f"{place[1]}.{_ns(stamp)}")
    if isinstance(decoded, EventInvalid):
        return False
    event, _ = decoded
    return invocation_id(spec.tenant, spec.name, source=event.source, event_id=event.id) == invocation


_PLACE = frozenset(
    ("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence", "Nats-UpTo-Sequence")
)


def _ns(stamp: str) -> int:
    """RFC 3339 with up to nine digits -> nanoseconds since the epoch."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    try:
        seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0
    return seconds * 10**9 + int((fraction or "0").ljust(9, "0")[:9])
