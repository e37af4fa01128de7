"""Cancels an invocation wherever it is: running or queued on any node, waiting in a stream, in a back-off. Answers whether the cancel won.

For a durable one the outcome `cancelled` is stored first, under the guard that every outcome has: so there is one winner. Then every node is
told, and whoever runs it stops it. One that nothing stores is stopped where it runs, and that is its end.
"""

from __future__ import annotations

import asyncio
import calendar
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import msgspec
import structlog

from faas import subjects
from faas.admission import decoded_event
from faas.bus import consumers
from faas.bus.cancels import Cancels
from faas.bus.connection import Bus, Message, Subscription
from faas.bus.messages import StoredMessage
from faas.bus.outcomes import Outcomes
from faas.bus.reading import messages_of
from faas.bus.schedules import due_of, is_due
from faas.errors import BusUnavailable, FaasError
from faas.identity import id_of
from faas.model import NAME_PATTERN, Ended, EventInvalid, FunctionSpec, FunctionVersion, Outcome, Phases
from faas.runs import Cancelled
from faas.unended import Held, Unended

log = structlog.get_logger()

ASK_S = 0.3
"""For other nodes to say that they hold it; one that holds it answers at once."""
READ_S = 10.0
"""What was cancelled before a node starts may take so long to be read; it starts then, and reads on."""
UNKNOWN_S = 86_400.0
"""How long a cancel matters of a function that this node does not serve: its queue timeout is not known here."""
LOOKING = 2
"""So many requests look through what waits at once: each may read a hundred thousand events."""
LOOKED_AT = 100_000
"""Of a function's waiting events so many are looked through for one that no node holds."""
REQUESTS = "faas.cancel.>"
_REQUEST = re.compile(rf"faas\.cancel\.({NAME_PATTERN})\.({NAME_PATTERN})\.([a-z2-7]{{26}})")
"""Anything else is no invocation: a wildcard would be looked up as all of them."""


class Cancelling:
    """Answers `faas.cancel...` on this node, and stops here what was cancelled anywhere. `open` it."""

    def __init__(self, bus: Bus, outcomes: Outcomes, unended: Unended, *, look_at: int, group: asyncio.TaskGroup) -> None:
        self._look_at, self._looking = look_at, asyncio.Semaphore(LOOKING)
        self._bus, self._outcomes, self._unended, self._group = bus, outcomes, unended, group
        self._cancels = Cancels(bus, lambda invocation, until: unended.cancel(invocation, until=until))
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: list[Subscription] = []
        self.functions: Callable[[tuple[str, str]], FunctionVersion | None] = lambda key: None

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, outcomes: Outcomes, unended: Unended, *, look_at: int = LOOKED_AT) -> AsyncIterator[Cancelling]:
        async with asyncio.TaskGroup() as group:
            cancelling = cls(bus, outcomes, unended, look_at=look_at, group=group)
            try:
                yield cancelling
            finally:
                await cancelling._deafen()
                for task in cancelling._tasks:
                    task.cancel()

    async def listen(self) -> None:
        """From now on; before the first function is served, so that nothing starts here that was cancelled before."""
        self._heard.append(await self._cancels.watch())
        self._bus.on_reconnect.append(self._read)
        await asyncio.wait([self._read()], timeout=READ_S)
        self._heard.append(await self._bus.subscribe(subjects.HOLDS, self._asked))
        self._heard.append(await self._bus.subscribe(subjects.ANSWERS, self._asked_for_answer))
        self._heard.append(await self._bus.subscribe(subjects.GONE, self._gone))
        self._heard.append(await self._bus.subscribe(REQUESTS, self._requested, queue="faas-cancel"))

    async def _deafen(self) -> None:
        if self._read in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self._read)
        for subscription in self._heard:
            await subscription.unsubscribe()

    def _read(self) -> asyncio.Task[None]:
        """What was cancelled before, or while the connection was lost, was not heard."""
        return self._start(self._cancels.read())

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _asked(self, message: Message) -> None:
        held = self._unended.holds(message.data.decode("utf-8", "replace"))
        if held is not None and message.reply:
            self._start(self._say(message.reply, msgspec.json.encode(held)))

    def _asked_for_answer(self, message: Message) -> None:
        """In its turn: the call itself may have come just before, and be taken only now."""
        asyncio.get_running_loop().call_soon(self._say_answer, message)

    def _say_answer(self, message: Message) -> None:
        invocation = self._unended.answering(message.data.decode("utf-8", "replace"))
        if invocation and message.reply:
            self._start(self._say(message.reply, invocation.encode()))

    def _gone(self, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._unended.gone, message.data.decode("utf-8", "replace"))

    def _requested(self, message: Message) -> None:
        self._start(self._answer(message))

    async def _say(self, subject: str, body: bytes) -> None:
        try:
            await self._bus.answer(subject, body)
        except FaasError as error:
            log.warning("cancel.not_answered", error=str(error))

    async def _answer(self, message: Message) -> None:
        asked = _REQUEST.fullmatch(message.subject)
        try:
            answer = await self.cancel(*asked.groups()) if asked is not None else Cancelled(cancelled=False, known=False)
        except FaasError as error:
            log.warning("cancel.failed", subject=message.subject, error=str(error))
            answer = Cancelled(cancelled=False, error=str(error))
        if message.reply:
            await self._say(message.reply, msgspec.json.encode(answer))

    async def cancel(self, tenant: str, function: str, invocation: str) -> Cancelled:
        """End an invocation as `cancelled`, unless it has ended. Raises BusUnavailable."""
        held = self._unended.holds(invocation) or await self._held_elsewhere(invocation)
        if held is not None and (held.tenant, held.function) != (tenant, function):
            return Cancelled(cancelled=False, known=False)  # whoever asked may cancel what he names, and this is another's
        served = self.functions((tenant, function))
        for_s = float(served.spec.limits.queue_timeout_s) if served is not None else UNKNOWN_S
        if held is not None and not held.durable:
            await self._cancels.put(invocation, for_s=for_s)
            return Cancelled(cancelled=True)
        found = await self._outcomes.find(tenant, function, invocation, leader=True)
        if found is not None:
            if found.outcome == "cancelled":  # whoever did that may have failed before the nodes were told
                await self._cancels.put(invocation, for_s=for_s)
            return Cancelled(cancelled=False, outcome=found.outcome)
        tried = await self._outcomes.attempts(tenant, function, invocation, leader=True)
        event_id = held.event_id if held is not None else tried.event_id
        if not event_id and served is not None:
            async with self._looking:
                event_id = await self._waits(served.spec, invocation)
        if not event_id:
            return Cancelled(cancelled=False, known=False)
        outcome = Outcome(
            invocation_id=invocation,
            tenant=tenant,
            function=function,
            version=held.version if held is not None else served.version if served is not None else "",
            event_id=event_id,
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

    async def is_open(self, tenant: str, function: str, invocation: str) -> bool:
        """Whether a node holds it, or its event waits in a stream. Raises BusUnavailable."""
        if self._unended.holds(invocation) is not None or await self._held_elsewhere(invocation) is not None:
            return True
        if (served := self.functions((tenant, function))) is None:
            return False
        async with self._looking:
            return bool(await self._waits(served.spec, invocation))

    async def _held_elsewhere(self, invocation: str) -> Held | None:
        """What another node says that holds it."""
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe(inbox, lambda message: heard.put_nowait(message.data))
        try:
            await self._bus.publish(subjects.HOLDS, invocation.encode(), reply=inbox)
            async with asyncio.timeout(ASK_S):
                return msgspec.json.decode(await heard.get(), type=Held)
        except (TimeoutError, msgspec.DecodeError):
            return None
        finally:
            await subscription.unsubscribe()

    async def _waits(self, spec: FunctionSpec, invocation: str) -> str:
        """The id of its event where that is among those that wait in a stream for the function, else "". Raises BusUnavailable beyond `look_at`."""
        left = self._look_at
        for stream, subject, after in await consumers.unsettled(self._bus, spec):
            async for message in messages_of(self._bus, stream, subject, after=after, limit=left):
                left -= 1
                found, event_id = _identity(message, spec, stream)
                if found == invocation:
                    return event_id
        if left <= 0:
            raise BusUnavailable(f"it is not among the first {self._look_at} events that wait for {spec.name}; ask again when fewer do")
        return ""


def _identity(message: StoredMessage, spec: FunctionSpec, stream: str) -> tuple[str, str]:
    """(invocation, event id) that a stored event is for a function; empty where it cannot be decoded."""
    headers = message.headers
    if is_due(message.subject):
        due = due_of(headers)
        return (due.invocation, due.event_id) if due is not None else ("", "")
    stamp = headers.get("Nats-Time-Stamp", "")
    own = {name: value for name, value in headers.items() if name not in _PLACE}
    decoded = decoded_event(message, own, source=stream, event_id=f"{message.sequence}.{_ns(stamp)}")
    if isinstance(decoded, EventInvalid):
        return "", ""
    event, control = decoded
    return id_of(spec.tenant, spec.name, event, control=control), event.id


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
