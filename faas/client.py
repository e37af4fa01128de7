"""A client for everyone who calls functions; the command line stands on it.

A foreign program on the bus: it knows subjects and headers, and nothing of how a node is made.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
from msgspec import Struct
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from faas import subjects
from faas.errors import BusUnavailable, ConfigInvalid, InvocationFailed, NoSuchFunction
from faas.identity import invocation_id
from faas.model import FunctionReport
from faas.units import Duration

CONNECT_S = 3.0
ANSWER_S = 3600.0
"""Without a timeout: the function's own clocks end a call long before, unless its node is gone."""
SLACK_S = 5.0
"""Beyond a deadline: for the answer that says so."""
QUESTION_S = 2.0
PAUSE_S = 0.1
"""Between two tries where a node that stops has answered 503."""
SOURCE = "/faas/client"


class _NodeFile(Struct, frozen=True):
    nats: str


class _Metadata(Struct, frozen=True):
    node: str = ""


class _Info(Struct, frozen=True):
    metadata: _Metadata = _Metadata()


class _Ack(Struct, frozen=True):
    stream: str = ""
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class Reply:
    """An outcome, or a synchronous answer: headers as received, body as bytes."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def outcome(self) -> str:
        return self.headers.get("Faas-Outcome", "")

    @property
    def reason(self) -> str:
        return self.headers.get("Faas-Reason", "")

    @property
    def result(self) -> Any:
        """The handler's result: a JSON value, or bytes. Raises InvocationFailed for any other end."""
        if self.outcome != "succeeded":
            raise self.failure
        kind = self.headers.get("Content-Type", "").partition(";")[0]
        return msgspec.json.decode(self.body) if kind == "application/json" or kind.endswith("+json") else self.body

    @property
    def failure(self) -> InvocationFailed:
        """This end as an exception."""
        document: dict[str, Any] = {}
        with suppress(msgspec.DecodeError):
            document = msgspec.json.decode(self.body, type=dict[str, Any])
        detail, traceback = str(document.get("detail", "")), str(document.get("traceback", ""))
        return InvocationFailed(self.outcome, self.reason, detail=detail, traceback=traceback)


@dataclass(slots=True)
class Ticket:
    """A durable invocation that the bus has accepted."""

    tenant: str
    function: str
    invocation: str


@dataclass(slots=True)
class Published:
    """An event that was published. `waiting` are the durable invocations that it sets off; `at_most_once` functions leave no outcome."""

    id: str
    stream: str
    waiting: list[Ticket] = field(default_factory=list)
    at_most_once: list[str] = field(default_factory=list)


class Client:
    """A connection to the bus of a node or a cluster. Made by `connect`."""

    def __init__(self, client: NatsClient) -> None:
        self._nats = client

    async def invoke(
        self,
        function: str,
        data: object = None,
        *,
        tenant: str = "default",
        timeout: str | float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Run a function and wait for its result. `timeout` ("10s", or seconds) bounds the whole call.

        Raises InvocationFailed where it ends as anything but succeeded, NoSuchFunction where nobody has it.
        """
        body, content = encode(data)
        reply = await self.request(function, body, tenant=tenant, timeout=timeout, headers={**content, **(headers or {})})
        return reply.result

    async def request(
        self,
        function: str,
        body: bytes,
        *,
        tenant: str = "default",
        timeout: str | float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Run a function on a body as it is, and wait for its answer, whatever end it names."""
        head, wait_s = dict(headers or {}), ANSWER_S
        if timeout is not None:
            wait_s = _seconds(timeout)
            head.setdefault("Faas-Deadline", (datetime.now(UTC) + timedelta(seconds=wait_s)).isoformat())
            wait_s += SLACK_S
        subject = subjects.invoke(tenant, function)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    message = await self._nats.request(subject, body, timeout=wait_s, headers=head or None)
                    answer = message.headers or {}
                    if "Faas-Outcome" in answer or answer.get("Nats-Service-Error-Code") != "503":
                        return Reply(answer, message.data)
                    await asyncio.sleep(PAUSE_S)  # nothing was started; another node, or the next start, answers
        except (TimeoutError, nats.errors.TimeoutError):
            raise BusUnavailable(f"no answer from {function} within {wait_s:g} s") from None
        except nats.errors.NoRespondersError:
            raise await self._no_such(function, tenant) from None

    async def _no_such(self, function: str, tenant: str) -> NoSuchFunction:
        """Why nobody answers for it, as far as the nodes know."""
        with suppress(BusUnavailable):
            for report in await self.functions():
                if (report.name, report.tenant) == (function, tenant) and report.error:
                    return NoSuchFunction(f"the function {function} is invalid: {report.error}")
        return NoSuchFunction(f"no function {function}; `faas functions` lists what there is")

    async def submit(
        self,
        function: str,
        data: object = None,
        *,
        id: str | None = None,
        tenant: str = "default",
        headers: Mapping[str, str] | None = None,
    ) -> Ticket:
        """Hand in a durable invocation: once this returns it will have exactly one outcome. The same `id` again is the same invocation."""
        event_id = id or uuid.uuid4().hex
        body, content = encode(data)
        try:
            await self._store(subjects.submit(tenant, function), body, event_id=event_id, headers={**content, **(headers or {})})
        except NoSuchFunction:
            raise await self._no_such(function, tenant) from None
        return Ticket(tenant, function, invocation_id(tenant, function, source=SOURCE, event_id=event_id))

    async def _store(self, subject: str, body: bytes, *, event_id: str, headers: Mapping[str, str]) -> str:
        head = {
            "ce-specversion": "1.0",
            "ce-type": "faas.event",
            "ce-source": SOURCE,
            **headers,
            "ce-id": event_id,
            "Nats-Msg-Id": f"{subject} {event_id}",  # a stream forgets repetitions over all of its subjects: the id alone would be another's
        }
        try:
            message = await self._nats.request(subject, body, timeout=CONNECT_S + 2, headers=head)
        except nats.errors.NoRespondersError:
            raise NoSuchFunction(
                f"nothing takes {subject}: no function has a trigger for it; `faas functions` lists what there is"
            ) from None
        except nats.errors.TimeoutError as error:
            raise BusUnavailable(
                f"{subject} was not acknowledged; it may be stored all the same, so send it again with the same id"
            ) from error
        ack = msgspec.json.decode(message.data, type=_Ack)
        if ack.error is not None:
            raise BusUnavailable(f"{subject} was refused: {ack.error.get('description', ack.error)}")
        return ack.stream

    async def outcome(self, ticket: Ticket, *, wait: str | float = "60s") -> Reply:
        """The outcome of a durable invocation, when it is there. Raises TimeoutError after `wait`."""
        async with self._listening([ticket]) as queue:
            async with asyncio.timeout(_seconds(wait)):
                stored = await self._stored(ticket)
                return stored or (await queue.get())[1]

    async def _stored(self, ticket: Ticket) -> Reply | None:
        subject = subjects.outcome(ticket.tenant, ticket.function, ticket.invocation)
        message = await self._nats.request(f"$JS.API.DIRECT.GET.{subjects.OUTCOMES}.{subject}", b"", timeout=CONNECT_S)
        headers = message.headers or {}
        return Reply(headers, message.data) if "Faas-Outcome" in headers else None

    async def publish(
        self, subject: str, data: object = None, *, id: str | None = None, headers: Mapping[str, str] | None = None, stored: bool = True
    ) -> Published:
        """Publish an event. `stored` waits until a stream has it; without it the event is core NATS, at most once."""
        event_id = id or uuid.uuid4().hex
        body, content = encode(data)
        head = {**content, **(headers or {})}
        if stored:
            return Published(event_id, await self._store(subject, body, event_id=event_id, headers=head))
        await self._nats.publish(
            subject, body, headers={"ce-specversion": "1.0", "ce-type": "faas.event", "ce-source": SOURCE, **head, "ce-id": event_id}
        )
        await self._nats.flush(timeout=int(CONNECT_S))
        return Published(event_id, "")

    @asynccontextmanager
    async def publish_and_listen(
        self, subject: str, data: object = None, *, id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[Published, AsyncIterator[tuple[Ticket, Reply]]]]:
        """Publish an event, and iterate over the outcomes of every durable function that it sets off, as they come."""
        event_id = id or uuid.uuid4().hex
        source = (headers or {}).get("ce-source", SOURCE)
        durable: list[FunctionReport] = []
        fleeting: list[FunctionReport] = []
        for report in await self.functions():
            for trigger in report.triggers:
                if report.state == "ready" and subjects.contains(trigger.subject, subject):
                    (durable if trigger.delivery == "at-least-once" else fleeting).append(report)
        tickets = [
            Ticket(r.tenant, r.name, invocation_id(r.tenant, r.name, source=source, event_id=event_id)) for r in dict.fromkeys(durable)
        ]
        async with self._listening(tickets) as queue:
            published = await self.publish(subject, data, id=event_id, headers=headers, stored=bool(tickets) or not fleeting)
            published.waiting, published.at_most_once = tickets, [r.name for r in fleeting]
            for ticket in tickets:  # the same event may have ended before it was published again
                if (reply := await self._stored(ticket)) is not None:
                    queue.put_nowait((ticket, reply))
            yield published, _each(queue, tickets)

    @asynccontextmanager
    async def _listening(self, tickets: Iterable[Ticket]) -> AsyncIterator[asyncio.Queue[tuple[Ticket, Reply]]]:
        queue: asyncio.Queue[tuple[Ticket, Reply]] = asyncio.Queue()
        subscriptions = []
        for ticket in tickets:

            async def take(message: Msg, ticket: Ticket = ticket) -> None:
                queue.put_nowait((ticket, Reply(message.headers or {}, message.data)))

            subject = subjects.outcome(ticket.tenant, ticket.function, ticket.invocation)
            subscriptions.append(await self._nats.subscribe(subject, cb=take))
        try:
            if subscriptions:
                await self._nats.jetstream().account_info()  # a fence: an answer of the server comes after its subscriptions
            yield queue
        finally:
            for subscription in subscriptions:
                await subscription.unsubscribe()

    async def functions(self) -> list[FunctionReport]:
        """Every function of every node, the invalid ones with what is wrong, by tenant and name."""
        found: dict[tuple[str, str], FunctionReport] = {}
        for node in await self._nodes():
            try:
                message = await self._nats.request(subjects.node(node, "functions"), b"", timeout=QUESTION_S)
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
                continue  # it stopped in this moment
            for report in msgspec.json.decode(message.data, type=list[FunctionReport]):
                known = found.get((report.tenant, report.name))
                if known is None or known.state == "invalid":
                    found[(report.tenant, report.name)] = report
        return [found[key] for key in sorted(found)]

    async def _nodes(self) -> list[str]:
        """The names of the nodes that answer for the service; at once where one does, else after QUESTION_S."""
        names: dict[str, None] = {}
        inbox = self._nats.new_inbox()
        first = asyncio.Event()

        async def take(message: Msg) -> None:
            if message.data:
                names[msgspec.json.decode(message.data, type=_Info).metadata.node] = None
            first.set()

        subscription = await self._nats.subscribe(inbox, cb=take)
        await self._nats.publish(f"$SRV.PING.{subjects.SERVICE}", b"", reply=inbox)
        with suppress(TimeoutError):
            async with asyncio.timeout(QUESTION_S):
                await first.wait()
        if names:
            await asyncio.sleep(PAUSE_S)  # others answer as fast; who does not is not a node that works
        await subscription.unsubscribe()
        if not names:
            raise BusUnavailable("no node answers on this bus; start one with `faas up`")
        return list(names)


async def _each(queue: asyncio.Queue[tuple[Ticket, Reply]], tickets: list[Ticket]) -> AsyncIterator[tuple[Ticket, Reply]]:
    """One outcome for each ticket; what the guard refused may be heard beside it."""
    left = {ticket.invocation for ticket in tickets}
    while left:
        ticket, reply = await queue.get()
        if ticket.invocation in left:
            left.remove(ticket.invocation)
            yield ticket, reply


@asynccontextmanager
async def connect(url: str | None = None, *, state: Path | str = ".faas") -> AsyncIterator[Client]:
    """Connect to the bus at `url`, else at FAAS_NATS, else to the node whose state folder this is.

    Raises ConfigInvalid where no node is named, BusUnavailable where nobody answers.
    """
    address = url or os.environ.get("FAAS_NATS") or _from_state(Path(state))

    async def ignore(error: Exception) -> None:
        """Errors come back from the calls that they concern."""

    try:
        client = await nats.connect(
            address, connect_timeout=int(CONNECT_S), max_reconnect_attempts=60, reconnect_time_wait=1, error_cb=ignore, allow_reconnect=True
        )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise BusUnavailable(f"no NATS at {address.rpartition('@')[2]}: {error or type(error).__name__}; is the node running?") from error
    try:
        yield Client(client)
    finally:
        with suppress(nats.errors.Error, OSError):
            await client.close()


def _from_state(state: Path) -> str:
    try:
        return msgspec.json.decode((state / "node.json").read_bytes(), type=_NodeFile).nats
    except (OSError, msgspec.DecodeError):
        raise ConfigInvalid(f"no node runs on the state folder {state}; start one with `faas up`, or give --nats URL") from None


def encode(data: object) -> tuple[bytes, dict[str, str]]:
    """A payload and the header that says what it is: bytes as they are, None as nothing, anything else as JSON."""
    if data is None:
        return b"", {}
    if isinstance(data, bytes):
        return data, {}
    return msgspec.json.encode(data), {"Content-Type": "application/json"}


def _seconds(duration: str | float) -> float:
    try:
        return float(Duration.parse(duration)) if isinstance(duration, str) else float(duration)
    except ValueError as error:
        raise ConfigInvalid(f"timeout: {error}") from error
