"""Following invocations: a synchronous one until its answer, a durable one from wherever its reader is until its outcome. Knows no route, and no form of an event."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Protocol

from aiohttp import web

from faas import subjects
from faas.bus.connection import NO_RESPONDERS, Bus, Message, encode_head
from faas.bus.reading import messages_of
from faas.errors import BusUnavailable
from faas.gateway.answers import Answer, Answering, refusal_of
from faas.gateway.asking import Asking, Place, StateDocument, ended, invocation_in
from faas.gateway.calls import Calls
from faas.gateway.events import PING_S, Events
from faas.gateway.problems import Refusal
from faas.gateway.tapes import Heard, SlowReader, Tapes

LATE_S = 0.15
"""The last lines of an attempt come so long after its end: they are gathered for a moment."""


class Asked(Protocol):
    """A synchronous call, as `invoke` makes it."""

    @property
    def tenant(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def head(self) -> Mapping[str, str]: ...
    @property
    def data(self) -> bytes: ...
    @property
    def wait_s(self) -> float: ...


class Streams:
    """`call` for a synchronous invocation, `follow` for a durable one."""

    def __init__(self, bus: Bus, *, asking: Asking, answering: Answering, calls: Calls, tapes: Tapes) -> None:
        self._bus, self._asking, self._answering, self._calls, self._tapes = bus, asking, answering, calls, tapes

    # ------------------------------------------------------------ synchronous

    async def call(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """Invoke, and stream what is said until the answer; what ends before it begins is answered as without a stream. Raises Refusal, BusUnavailable."""
        # With a word of its own: how the inboxes of a node begin and count is known to who hears what it stores.
        inbox, heard = f"{self._bus.new_inbox()}.{secrets.token_hex(8)}", Heard(partial(_cut, request), self._tapes.room)
        reply_to = f"{inbox}.answer"
        head = encode_head({**asked.head, "Faas-Chunk-To": f"{inbox}{subjects.ITEMS}"}.items())
        subject, answers = subjects.invoke(asked.tenant, asked.function), list[Answer]()

        def take(message: Message) -> None:
            if message.subject == reply_to:
                answers.append(Answer.of(message))
            heard.put(message)

        async with AsyncExitStack() as stack, Events.to(request) as events:
            stack.callback(heard.close)
            stack.push_async_callback(self._let_go, answers)
            waiting = stack.enter_context(self._calls.waiting(reply_to))
            try:
                await self._hear(stack, f"{inbox}.*", take)
                await self._bus.publish(subject, asked.data, head=head, reply=reply_to)
                await self._bus.publish(subjects.ANSWERS, reply_to.encode(), reply=f"{inbox}.which")
                async with asyncio.timeout(asked.wait_s):
                    answer = await self._until_answer(stack, events, heard, asked=asked)
                waiting.answered = True
                if events.response is None:
                    return await self._answering.respond(request, answer, read_once=True)
                if events.said is not None:
                    await asyncio.sleep(LATE_S)
                    await self._late(events, heard, events.said.invocation)
                await events.state(ended(answer), None if answer.object and events.item else answer)  # its reader has had every item
                return await events.begin()
            except TimeoutError:
                raise Refusal(504, "timeout", "no answer came before the deadline") from None

    async def _let_go(self, answers: list[Answer]) -> None:
        """A call is over: its large result leaves the bucket, whether its reader was there to the end or not."""
        for answer in answers:
            await self._answering.let_go(answer)

    async def _until_answer(self, stack: AsyncExitStack, events: Events, heard: Heard, *, asked: Asked) -> Answer:
        while True:
            message = await self._next(heard)
            if message is None:
                continue
            token = message.subject.rpartition(".")[2]
            if token == "items":
                await events.chunk(message)
            elif token == "which":
                if invocation := invocation_in(message.data):
                    await self._hear(stack, subjects.log(asked.tenant, asked.function, invocation), heard.put)
                    document = StateDocument(invocation=invocation, tenant=asked.tenant, function=asked.function, state="waiting")
                    await events.state(document)
            elif token == "answer":
                if message.status == NO_RESPONDERS:
                    raise Refusal(404, "unknown_function", f"no function {asked.function} of tenant {asked.tenant}")
                if (refusal := refusal_of(message)) is not None:
                    raise refusal
                return Answer.of(message)
            elif events.said is not None:
                await events.progress(message.data, invocation=events.said.invocation, place=0)

    async def _late(self, events: Events, heard: Heard, invocation: str) -> None:
        """Lines that come behind the answer: they were gathered for a moment."""
        while (message := await heard.next(wait_s=0.0)) is not None:
            if message.subject.startswith("faas.log."):
                await events.progress(message.data, invocation=invocation, place=0)

    # ------------------------------------------------------------ durable

    async def follow(
        self,
        request: web.BaseRequest,
        place: Place,
        *,
        headers: Mapping[str, str] | None = None,
        submit: Callable[[], Awaitable[None]] | None = None,
    ) -> web.StreamResponse:
        """Stream what is said of an invocation until it has ended; `submit` hands it in once all that it says is heard. Raises Refusal, BusUnavailable."""
        if not place.durable:
            raise Refusal(
                409, "not_stored", "a synchronous invocation tells its events to its caller alone; send Accept: text/event-stream with it"
            )
        async with AsyncExitStack() as stack, Events.to(request, headers) as events:
            heard = Heard(partial(_cut, request), self._tapes.room)
            stack.callback(heard.close)
            await self._listen(stack, place.document, heard)
            if submit is not None:
                await submit()
            await self._follow(events, place, heard)
            return await events.begin()

    async def _listen(self, stack: AsyncExitStack, document: StateDocument, heard: Heard) -> None:
        """All that is said of a durable invocation, from now on until `stack` is left."""
        key = (document.tenant, document.function, document.invocation)
        for subject in (subjects.outcome(*key), subjects.attempt(*key), subjects.log(*key)):
            await self._hear(stack, subject, heard.put)
        await stack.enter_async_context(self._tapes.reading(subjects.chunk(*key), heard))
        self._bus.on_reconnect.append(heard.wake)
        stack.callback(self._bus.on_reconnect.remove, heard.wake)
        self._asking.at_stop.add(heard.wake)
        stack.callback(self._asking.at_stop.discard, heard.wake)
        await self._bus.fence()

    async def _follow(self, events: Events, place: Place, heard: Heard) -> None:
        """Say what is heard until its outcome is there, or the node stops."""
        document = place.document
        key = (document.tenant, document.function, document.invocation)
        if document.state == "ended" and place.answer is None:  # its outcome is older than what is kept
            await events.state(document)
            return
        if document.state != "ended":
            await events.state(document)
        await self._progress(events, document)
        look: Callable[[str, str, str], Awaitable[Answer | None]] | None = self._asking.outcome
        while not self._asking.stopping:
            with suppress(BusUnavailable):  # when it is back this looks again
                if look is not None and (answer := await look(*key)) is not None:
                    await self._rest(events, document, heard)
                    await events.state(ended(answer), answer)
                    return
            message = await self._next(heard, wait_s=PING_S)
            ended_now = message is not None and message.subject == subjects.outcome(*key)
            look = self._asking.outcome_heard if ended_now else self._asking.outcome if message is None else None
            if message is None or message.subject == subjects.attempt(*key):
                await self._look_again(events, document)
            elif message.subject == subjects.chunk(*key):
                await events.chunk(message)
            elif message.subject == subjects.log(*key) and b'"progress"' in message.data:
                await self._progress(events, document)

    async def _rest(self, events: Events, document: StateDocument, heard: Heard) -> None:
        """What was said before the end, and is heard behind it."""
        await asyncio.sleep(LATE_S)
        while (message := await heard.next(wait_s=0.0)) is not None:
            if message.subject.startswith(subjects.CHUNKS):
                await events.chunk(message)
        await self._progress(events, document)

    async def _look_again(self, events: Events, document: StateDocument) -> None:
        """An attempt has ended, or a while has passed."""
        with suppress(BusUnavailable, Refusal):
            place = await self._asking.place(document.tenant, document.invocation)
            if place.document.state != "ended":  # the outcome is looked up by itself, and said behind all that came before
                await events.state(place.document)

    async def _progress(self, events: Events, document: StateDocument) -> None:
        subject = subjects.log(document.tenant, document.function, document.invocation)
        with suppress(BusUnavailable):  # the next line looks again
            async for message in messages_of(self._bus, subjects.LOGS, subject, after=events.place):
                await events.progress(message.data, invocation=document.invocation, place=message.sequence)

    # ------------------------------------------------------------ hearing

    async def _hear(self, stack: AsyncExitStack, subject: str, take: Callable[[Message], None]) -> None:
        subscription = await self._bus.subscribe(subject, take)
        stack.push_async_callback(subscription.unsubscribe)

    async def _next(self, heard: Heard, *, wait_s: float | None = None) -> Message | None:
        try:
            return await heard.next(wait_s=wait_s)
        except SlowReader as error:
            raise ConnectionResetError(str(error)) from error


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
