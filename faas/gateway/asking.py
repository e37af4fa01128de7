"""What the gateway asks on the bus: where an invocation is, what is stored of it, what became of a cancel. Asks like any client; knows no dispatcher."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct

from faas import subjects
from faas.bus.connection import Bus
from faas.errors import BusUnavailable
from faas.gateway.answers import Answer
from faas.gateway.problems import Refusal
from faas.runs import Cancelled, Filter, Run, Told
from faas.unended import Held

ASK_S = 0.3
"""For a node to say that it holds an invocation; one that does answers at once."""
TOLD_S = 10.0
"""A node reads what is new on the bus before it says what ran."""
HEARD_PAUSES_S = (0.01, 0.05, 0.2, 0.5)
"""Between two looks for an outcome that was heard: a stream that syncs every write has it some milliseconds later."""
CANCEL_S = 30.0
"""A node may look through a hundred thousand waiting events first."""
_ID = re.compile("[a-z2-7]{26}")
_NUMBER = re.compile("[0-9]{1,18}")

State = Literal["waiting", "running", "ended"]


class StateDocument(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`GET /invocations/<id>` and the event `state` of its stream, beside the result: where an invocation is. Clocks are in microseconds."""

    invocation: str
    tenant: str
    function: str
    state: State
    version: str = ""
    event_id: str = ""
    attempt: int = 0  # that it is at, or ended with
    outcome: str = ""
    reason: str = ""
    start: str = ""
    queue_us: int = 0
    load_us: int = 0
    run_us: int = 0
    content_type: str = ""  # of the result


@dataclass(slots=True, frozen=True)
class Place:
    """Where an invocation is; `answer` is its stored outcome, if there is one."""

    document: StateDocument
    answer: Answer | None = None
    durable: bool = True


class Asking:
    """`node` is this node's name: its projection says what no other answer tells."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus, self._node = bus, node
        self.at_stop: set[Callable[[], None]] = set()
        self.stopping = False

    async def place(self, tenant: str, invocation: str) -> Place:
        """Where an invocation of this tenant is ("": of any). Raises Refusal (404), BusUnavailable."""
        if (answer := await self.outcome(tenant, "*", invocation)) is not None:
            return Place(ended(answer), answer)
        held, tried = await asyncio.gather(self.held(invocation), self._last(subjects.attempt(tenant or "*", "*", invocation)))
        if held is not None and (not tenant or held.tenant == tenant):
            state: State = "waiting" if held.stage in ("", "queued") else "running"
            document = StateDocument(
                invocation=invocation,
                tenant=held.tenant,
                function=held.function,
                state=state,
                version=held.version,
                event_id=held.event_id,
                attempt=held.attempt,
            )
            return Place(document, durable=held.durable)
        if tried is not None:  # in its back-off
            return Place(msgspec.structs.replace(ended(tried), state="waiting", outcome="", reason="", content_type=""))
        if (answer := await self.outcome(tenant, "*", invocation)) is not None:  # it ended between the two questions
            return Place(ended(answer), answer)
        run = await self._ran(tenant, invocation)
        return Place(
            StateDocument(
                invocation=invocation,
                tenant=run.tenant,
                function=run.function,
                state="ended" if run.outcome else "waiting",
                version=run.version,
                event_id=run.event_id,
                attempt=run.attempts,
                outcome=run.outcome,
                reason=run.reason,
                start=run.start,
                queue_us=run.queue_us,
                load_us=run.load_us,
                run_us=run.run_us,
            )
        )

    async def _ran(self, tenant: str, invocation: str) -> Run:
        """What this node's projection knows of it. Raises Refusal (404, 503)."""
        question = msgspec.json.encode(Filter(invocation=invocation, tenant=tenant, limit=1))
        message = await self._bus.request(subjects.node(self._node, "runs"), question, timeout_s=TOLD_S)
        told = msgspec.json.decode(message.data, type=Told)
        if told.absent:
            raise BusUnavailable(f"this node cannot say what ran: {told.absent}")
        if not told.runs or (tenant and told.runs[0].tenant != tenant):
            raise Refusal(404, "unknown_invocation", f"no invocation {invocation}; an outcome is kept for [bus] outcome_retention")
        return told.runs[0]

    async def outcome(self, tenant: str, function: str, invocation: str) -> Answer | None:
        """The stored outcome, by the stream's leader; names may be wildcards."""
        return await self._last(subjects.outcome(tenant or "*", function, invocation))

    async def outcome_heard(self, tenant: str, function: str, invocation: str) -> Answer | None:
        """The stored outcome of one that was just heard: whoever listens may hear it before the stream has it."""
        for pause_s in HEARD_PAUSES_S:
            if (answer := await self.outcome(tenant, function, invocation)) is not None:
                return answer
            await asyncio.sleep(pause_s)
        return await self.outcome(tenant, function, invocation)

    async def _last(self, subject: str) -> Answer | None:
        found = await self._bus.last_stored(subjects.OUTCOMES, subject)
        if found is None:
            return None
        _, _, tenant, function, invocation = found.subject.split(".")
        named = {"Faas-Invocation": invocation, "Faas-Tenant": tenant, "Faas-Function": function}
        return Answer({**named, **_without_stream(found.headers)}, found.data)

    async def held(self, invocation: str) -> Held | None:
        """What the node says that has it in its hands."""
        data = await self._ask_all(subjects.HOLDS, invocation)
        try:
            return msgspec.json.decode(data, type=Held) if data else None
        except msgspec.DecodeError:  # a stranger on the bus may answer too
            return None

    async def answering(self, reply_to: str) -> str:
        """Which invocation a synchronous call has become, "" where no node has it yet."""
        return invocation_in(await self._ask_all(subjects.ANSWERS, reply_to))

    @asynccontextmanager
    async def waking(self, *subjects_heard: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something comes on one of these subjects, or may have while nobody heard it, or the node stops."""
        woken = asyncio.Event()
        heard = [await self._bus.subscribe(subject, lambda message: woken.set()) for subject in subjects_heard]
        self._bus.on_reconnect.append(woken.set)
        self.at_stop.add(woken.set)
        try:
            yield woken
        finally:
            self.at_stop.discard(woken.set)
            self._bus.on_reconnect.remove(woken.set)
            for subscription in heard:
                await subscription.unsubscribe()

    def stop(self) -> None:
        """The node stops: whoever waits for something that may not come any more answers with what there is."""
        self.stopping = True
        for wake in self.at_stop:
            wake()

    async def _ask_all(self, subject: str, question: str) -> bytes:
        try:
            return (await self._bus.request(subject, question.encode(), timeout_s=ASK_S)).data
        except BusUnavailable:
            return b""

    async def cancel(self, place: Place) -> Cancelled:
        """End it as cancelled. Raises BusUnavailable."""
        document = place.document
        subject = subjects.cancel(document.tenant, document.function, document.invocation)
        answer = msgspec.json.decode((await self._bus.request(subject, b"", timeout_s=CANCEL_S)).data, type=Cancelled)
        if answer.error:
            raise BusUnavailable(f"{document.invocation} could not be cancelled: {answer.error}")
        return answer


def invocation_in(data: bytes) -> str:
    """The invocation that an answer names, "" where it names none: it becomes part of a subject."""
    text = data.decode("ascii", "replace")
    return text if _ID.fullmatch(text) else ""


def number_in(text: str) -> int:
    """A whole number of a header, 0 for whatever is none."""
    return int(text) if _NUMBER.fullmatch(text) else 0


def ended(answer: Answer) -> StateDocument:
    """The state that a stored outcome is."""
    headers = answer.headers

    def number(name: str) -> int:
        return number_in(headers.get(name, ""))

    return StateDocument(
        invocation=answer.invocation,
        tenant=headers.get("Faas-Tenant", ""),
        function=headers.get("Faas-Function", ""),
        state="ended",
        version=headers.get("Faas-Version", ""),
        event_id=headers.get("Faas-Event-Id", ""),
        attempt=number("Faas-Attempt"),
        outcome=answer.outcome,
        reason=answer.reason,
        start=headers.get("Faas-Start", ""),
        queue_us=number("Faas-Queue-Us"),
        load_us=number("Faas-Load-Us"),
        run_us=number("Faas-Run-Us"),
        content_type=answer.content_type if answer.outcome == "succeeded" else "",
    )


def _without_stream(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")}
