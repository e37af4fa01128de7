"""`POST /invoke/<tenant>/<function>`: an invocation that is answered at once, or handed in and answered later. Publishes and requests; never calls the dispatcher.

A synchronous one ends with its client: nobody waits for what nobody reads. A durable one is answered with 202 only once
the bus has its event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec
from aiohttp import web

from faas import subjects
from faas.bus.cloudevents import decode
from faas.bus.connection import Bus, NoStream, encode_head
from faas.bus.keys import Keyed, Keys
from faas.bus.reading import holds_another
from faas.envelope import Ticket, completed, outgoing
from faas.errors import BusUnavailable, StoreRefused
from faas.gateway.answers import Answer, Answering, refusal_of
from faas.gateway.asking import Asking, Place, StateDocument
from faas.gateway.calls import Calls
from faas.gateway.incoming import HEAD_BYTES, KEY, Preference, control_of, head_of, is_structured, preference_of, wants_stream
from faas.gateway.problems import Refusal
from faas.gateway.routes import Call, Route
from faas.gateway.stream import Streams
from faas.gateway.uploads import Bodies, Body
from faas.model import Control, EventInvalid

ANSWER_S = 3600.0
"""Without a deadline the function's own clocks end a call long before."""
SLACK_S = 5.0
"""Beyond a deadline: for the answer that says so."""
AGAIN_TIMES, AGAIN_S = 20, 0.1
"""A node that stops answers 503, and nothing was started: another one, or its next start, is asked."""
CALL_KEPT_S = 3600.0
STOPPING_S = 0.25
"""So often a node that stops looks whether what is waited for has ended."""
EVENT_KEPT_S = 8 * 86_400 + 3600.0
"""As long as an event can wait, and a little more."""


@dataclass(slots=True, frozen=True)
class Request:
    """One event for one function, as the bus takes it."""

    tenant: str
    function: str
    head: Mapping[str, str]
    data: bytes
    control: Control

    @property
    def wait_s(self) -> float:
        return wait_s_of(self.control)


class Invoking:
    """The route."""

    def __init__(
        self, bus: Bus, bodies: Bodies, *, asking: Asking, answering: Answering, streams: Streams, calls: Calls, keys: Keys
    ) -> None:
        self._bus, self._bodies, self._asking, self._answering = bus, bodies, asking, answering
        self._streams, self._calls, self._keys = streams, calls, keys

    def routes(self) -> list[Route]:
        return [Route("POST", "/invoke/{tenant}/{function}", self.invoke, scope="invoke")]

    async def invoke(self, call: Call) -> web.StreamResponse:
        """Answer one request, in the way that its `Prefer` and `Accept` ask for."""
        tenant, function = call.tenant(), call.name("function")
        head, preference = head_of(call.request), preference_of(call.request)
        durable = preference.respond_async or preference.wait_s is not None
        if not self._bus.connected:  # what is published now would be kept, and stored behind the back of whoever was told that it failed
            raise BusUnavailable("the bus is away")
        async with self._bodies.of(call.request, inline_limit_bytes=self._bus.body_limit_bytes - 2 * HEAD_BYTES) as body:
            if body.file is not None and is_structured(head):
                raise Refusal(413, "payload_too_large", "a structured event has to fit into one message of the bus; send it in binary mode")
            control = control_of(head, body.data)
            if durable or control.key:
                wait_s = preference.wait_s if durable else wait_s_of(control)
                return await self._durable(call.request, tenant, function, head=head, body=body, preference=preference, wait_s=wait_s or 0)
            data, carried = await self._carried(body, head, kept_s=CALL_KEPT_S)
            asked = Request(tenant, function, carried, data, control)
            if wants_stream(call.request):
                return await self._streams.call(call.request, asked)
            return await self._synchronous(call.request, asked)

    async def _carried(self, body: Body, head: Mapping[str, str], *, kept_s: float) -> tuple[bytes, dict[str, str]]:
        """(body, headers) as the bus takes them: a large body is in the bucket from now on. Raises StoreRefused, BusUnavailable."""
        if body.file is None:
            return body.data, dict(head)
        reference = await self._bodies.put(body, kept_s=kept_s)
        body.close()
        return b"", completed({**head, "ce-dataref": reference})

    # ------------------------------------------------------------ synchronous

    async def _synchronous(self, request: web.BaseRequest, asked: Request) -> web.StreamResponse:
        for left in range(AGAIN_TIMES, -1, -1):
            answer = await self._call(asked)
            if not isinstance(answer, Refusal):
                return await self._answering.respond(request, answer, read_once=True)
            if answer.status != 503 or not left or self._asking.stopping:
                raise answer
            await asyncio.sleep(AGAIN_S)
        raise AssertionError("unreachable")

    async def _call(self, asked: Request) -> Answer | Refusal:
        """One request on the bus. Raises Refusal (404, 504), BusUnavailable."""
        subject, until_monotonic = subjects.invoke(asked.tenant, asked.function), time.monotonic() + asked.wait_s
        with self._calls.waiting(self._bus.new_reply()) as call:
            try:
                head = encode_head(asked.head.items())
                message = await self._bus.request(subject, asked.data, head=head, timeout_s=asked.wait_s, reply_to=call.reply_to)
            except NoStream:
                await self._bodies.let_go(asked.head)
                raise unknown(asked.tenant, asked.function) from None
            except BusUnavailable as error:
                if time.monotonic() < until_monotonic:
                    raise
                raise Refusal(504, "timeout", "no answer came before the deadline") from error
            call.answered = True
        return refusal_of(message) or Answer.of(message)

    # ------------------------------------------------------------ durable

    async def _durable(
        self,
        request: web.BaseRequest,
        tenant: str,
        function: str,
        *,
        head: Mapping[str, str],
        body: Body,
        preference: Preference,
        wait_s: float,
    ) -> web.StreamResponse:
        """Hand it in, and answer with its outcome where that is there within `wait_s`. One with a key that prefers nothing is waited for to its end."""
        subject = subjects.submit(tenant, function)
        event = outgoing(subject, body.data, head, id=None)
        ticket = event.ticket(tenant, function)
        own = {**event.headers, "Faas-Chunk-To": subjects.chunk(tenant, function, ticket.invocation)}
        data, carried = await self._carried(body, own, kept_s=EVENT_KEPT_S)
        if wants_stream(request):
            waiting = StateDocument(invocation=ticket.invocation, tenant=tenant, function=function, state="waiting")
            headers = {"Content-Location": f"/invocations/{ticket.invocation}", **preference.applied}
            submit = partial(self._store, ticket, data, carried)
            return await self._streams.follow(request, Place(waiting), headers=headers, submit=submit)
        if not wait_s:
            await self._store(ticket, data, carried)
            body.close()
            return accepted_as(ticket, preference)
        async with self._asking.waking(ticket.outcome_subject) as woken:
            await self._bus.fence()
            await self._store(ticket, data, carried)
            body.close()
            answer = await self._outcome(ticket, woken, wait_s=wait_s, stay=not preference.applied)
        if answer is None and not preference.applied:
            said = "it has not ended yet; send it again with the same key"
            raise Refusal(503, "no_capacity", said) if self._asking.stopping else Refusal(504, "timeout", said)
        if answer is None:
            return accepted_as(ticket, preference)
        return await self._answering.respond(request, answer, headers=preference.applied)

    async def _store(self, ticket: Ticket, data: bytes, head: Mapping[str, str]) -> None:
        """Once this returns the bus has the event. Raises Refusal (404), StoreRefused, BusUnavailable."""
        try:
            if KEY in head:
                await self._accept(ticket, data, head)
            else:
                await self._submit(subjects.submit(ticket.tenant, ticket.function), data, head)
        except NoStream:
            await self._bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict)  # a server that has just started answers nobody yet
            await self._bodies.let_go(head)
            raise unknown(ticket.tenant, ticket.function) from None
        except StoreRefused:
            await self._bodies.let_go(head)
            raise

    async def _submit(self, subject: str, data: bytes, head: Mapping[str, str]) -> None:
        stored = await self._bus.store(subject, data, head=encode_head(head.items()))
        if stored.duplicate and await holds_another(self._bus, stored, subject):
            unnamed = [(name, value) for name, value in head.items() if name != "Nats-Msg-Id"]
            await self._bus.store(subject, data, head=encode_head(unnamed))  # it is known by its own id, and runs once
        elif stored.duplicate:  # the first one has a body of its own
            await self._bodies.let_go(head)

    async def _accept(self, ticket: Ticket, data: bytes, head: Mapping[str, str]) -> None:
        decoded = decode(head, data, source="http", event_id=head[KEY])
        if isinstance(decoded, EventInvalid):
            raise Refusal(400, "event_invalid", decoded.detail)
        event, control = decoded
        await self._keys.accept(Keyed.of(ticket.tenant, ticket.function, event, control=control), data, head)

    async def _outcome(self, ticket: Ticket, woken: asyncio.Event, *, wait_s: float, stay: bool) -> Answer | None:
        """Wait for it; with `stay` also while this node stops, as long as some node has it in its hands."""
        look, key = self._asking.outcome, (ticket.tenant, ticket.function, ticket.invocation)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while True:
                    ending = self._asking.stopping and not (stay and await self._asking.held(ticket.invocation) is not None)
                    with suppress(BusUnavailable):  # when it is back this wakes again
                        if (answer := await look(*key)) is not None:
                            return answer
                    if ending:  # before it was looked for: its end is stored before it is let go
                        return None
                    with suppress(TimeoutError):
                        async with asyncio.timeout(STOPPING_S if self._asking.stopping else None):
                            await woken.wait()
                    woken.clear()
                    look = self._asking.outcome_heard
        return None


def wait_s_of(control: Control) -> float:
    """How long a synchronous answer is waited for."""
    return ANSWER_S if control.deadline_at is None else max(0.0, control.deadline_at - time.time()) + SLACK_S


def accepted_as(ticket: Ticket, preference: Preference) -> web.Response:
    """202: the bus has the event, and where to look for what becomes of it."""
    document = StateDocument(invocation=ticket.invocation, tenant=ticket.tenant, function=ticket.function, state="waiting")
    headers = {
        "Location": f"/invocations/{ticket.invocation}",
        "Faas-Invocation": ticket.invocation,
        "Content-Type": "application/json",
        **preference.applied,
    }
    return web.Response(status=202, body=msgspec.json.encode(document), headers=headers)


def unknown(tenant: str, function: str) -> Refusal:
    return Refusal(404, "unknown_function", f"no function {function} of tenant {tenant}; `faas functions` lists what there is")
