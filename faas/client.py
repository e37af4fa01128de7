"""A client for everyone who calls functions; the command line stands on it.

A foreign program on the bus: it knows subjects and headers, and nothing of how a node is made.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
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
from faas.envelope import Outgoing, Published, Reply, Ticket, check_size, completed, encode, outgoing
from faas.errors import BusUnavailable, ConfigInvalid, NoSuchFunction
from faas.model import NAME_PATTERN, FunctionReport
from faas.units import Duration

CONNECT_S = 3.0
ANSWER_S = 3600.0
"""Without a timeout: the function's own clocks end a call long before, unless its node is gone."""
SLACK_S = 5.0
"""Beyond a deadline: for the answer that says so."""
QUESTION_S = 2.0
PAUSE_S = 0.1
"""Between two tries where a node that stops has answered 503."""
_NAME = re.compile(NAME_PATTERN)


class _NodeFile(Struct, frozen=True):
    nats: str


class _Metadata(Struct, frozen=True):
    node: str = ""


class _Info(Struct, frozen=True):
    metadata: _Metadata = _Metadata()


class _Ack(Struct, frozen=True):
    stream: str = ""
    error: dict[str, Any] | None = None


class Client:
    """A connection to the bus of a node or a cluster. Made by `connect`."""

    def __init__(self, client: NatsClient) -> None:
        self._nats = client

    @property
    def nats(self) -> NatsClient:
        """The connection itself, for what this class has no word for."""
        return self._nats

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
        body, head = encode(data, headers or {})
        reply = await self.request(function, body, tenant=tenant, timeout=timeout, headers=head)
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
        _check_name(function, tenant)
        body, head = encode(body, completed(headers or {}))
        wait_s = ANSWER_S
        if timeout is not None:
            wait_s = _seconds(timeout)
            head.setdefault("Faas-Deadline", (datetime.now(UTC) + timedelta(seconds=wait_s)).isoformat())
            wait_s += SLACK_S
        subject = subjects.invoke(tenant, function)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    message = await self._ask(subject, body, head, wait_s=wait_s)
                    answer = message.headers or {}
                    if "Faas-Outcome" in answer or answer.get("Nats-Service-Error-Code") != "503":
                        return Reply(answer, message.data)
                    await asyncio.sleep(PAUSE_S)  # nothing was started; another node, or the next start, answers
        except TimeoutError:
            raise BusUnavailable(f"no answer from {function} within {wait_s:g} s") from None
        except nats.errors.NoRespondersError:
            raise await self._no_such(function, tenant) from None

    async def _ask(self, subject: str, body: bytes, head: Mapping[str, str], *, wait_s: float) -> Msg:
        """One request. Raises TimeoutError, NoRespondersError, MessageTooLarge, and BusUnavailable for everything else that the connection says."""
        check_size(subject, body, head, limit_bytes=self._nats.max_payload)
        try:
            return await self._nats.request(subject, body, timeout=wait_s, headers=dict(head) or None)
        except nats.errors.NoRespondersError:
            raise
        except nats.errors.TimeoutError as error:
            raise TimeoutError from error
        except nats.errors.Error as error:
            raise BusUnavailable(f"the connection to the bus failed: {error}") from error

    async def _no_such(self, function: str, tenant: str) -> NoSuchFunction:
        """Why nobody answers for it, as far as the nodes know."""
        others: list[str] = []
        with suppress(BusUnavailable):
            for report in await self.functions(function):
                if report.tenant == tenant and report.error:
                    return NoSuchFunction(f"the function {function} is invalid: {report.error}")
                others += [report.tenant] if report.tenant != tenant else []
        return no_such_function(function, tenant, others)

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
        _check_name(function, tenant)
        event = outgoing(subjects.submit(tenant, function), data, headers or {}, id=id)
        try:
            await self._store(subjects.submit(tenant, function), event)
        except NoSuchFunction:
            raise await self._no_such(function, tenant) from None
        return event.ticket(tenant, function)

    async def _store(self, subject: str, event: Outgoing) -> str:
        """The stream that has it."""
        try:
            message = await self._ask(subject, event.body, event.headers, wait_s=CONNECT_S + 2)
        except nats.errors.NoRespondersError:
            raise NoSuchFunction(
                f"nothing takes {subject}: no function has a trigger for it; `faas functions` lists what there is"
            ) from None
        except TimeoutError as error:
            raise BusUnavailable(
                f"{subject} was not acknowledged; it may be stored all the same, so send it again with the same id"
            ) from error
        try:
            ack = msgspec.json.decode(message.data, type=_Ack)
        except msgspec.DecodeError as error:
            raise BusUnavailable(f"{subject} was answered by something that is no stream") from error
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
        try:
            message = await self._ask(f"$JS.API.DIRECT.GET.{subjects.OUTCOMES}.{ticket.outcome_subject}", b"", {}, wait_s=CONNECT_S)
        except nats.errors.NoRespondersError:
            raise BusUnavailable(f"no stream {subjects.OUTCOMES} on this bus; is a node running?") from None
        headers = message.headers or {}
        return Reply(headers, message.data) if "Faas-Outcome" in headers else None

    async def publish(
        self, subject: str, data: object = None, *, id: str | None = None, headers: Mapping[str, str] | None = None, stored: bool = True
    ) -> Published:
        """Publish an event. `stored` waits until a stream has it; without it the event is core NATS, at most once."""
        return await self._publish(subject, outgoing(subject, data, headers or {}, id=id), stored=stored)

    async def _publish(self, subject: str, event: Outgoing, *, stored: bool) -> Published:
        if (problem := subjects.problem_with(subject)) is not None:
            raise ConfigInvalid(f"{subject[:80]!r} cannot be published to: {problem}")
        if stored:
            return Published(event.id, await self._store(subject, event))
        check_size(subject, event.body, event.headers, limit_bytes=self._nats.max_payload)
        try:
            await self._nats.publish(subject, event.body, headers=dict(event.headers))
            await self._nats.flush(timeout=int(CONNECT_S))
        except nats.errors.Error as error:
            raise BusUnavailable(f"the connection to the bus failed: {error}") from error
        return Published(event.id, "")

    @asynccontextmanager
    async def publish_and_listen(
        self, subject: str, data: object = None, *, id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[Published, AsyncIterator[tuple[Ticket, Reply]]]]:
        """Publish an event, and iterate over the outcomes of every durable function that it sets off, as they come."""
        event = outgoing(subject, data, headers or {}, id=id)
        durable: dict[tuple[str, str], None] = {}  # (tenant, function), each once whatever number of its triggers match
        fleeting: dict[tuple[str, str], None] = {}
        for report in await self.functions():
            for trigger in report.triggers:
                if report.state == "ready" and subjects.contains(trigger.subject, subject):
                    (durable if trigger.delivery == "at-least-once" else fleeting)[report.tenant, report.name] = None
        tickets = [event.ticket(tenant, name) for tenant, name in durable]
        async with self._listening(tickets) as queue:
            published = await self._publish(subject, event, stored=bool(tickets) or not fleeting)
            published.waiting, published.at_most_once = tickets, [name for _, name in fleeting]
            for ticket in tickets:  # the same event may have ended before it was published again
                if (reply := await self._stored(ticket)) is not None:
                    queue.put_nowait((ticket, reply))
            yield published, _each(queue, tickets)

    @asynccontextmanager
    async def _listening(self, tickets: Iterable[Ticket]) -> AsyncIterator[asyncio.Queue[tuple[Ticket, Reply]]]:
        """Outcomes as they come; the dead letter of an event that could not be decoded counts as one, since nothing else will."""
        queue: asyncio.Queue[tuple[Ticket, Reply]] = asyncio.Queue()
        subscriptions = []
        for ticket in tickets:

            async def take(message: Msg, ticket: Ticket = ticket) -> None:
                queue.put_nowait((ticket, Reply(message.headers or {}, message.data)))

            async def take_letter(message: Msg, ticket: Ticket = ticket) -> None:
                head = message.headers or {}
                if head.get("Faas-Reason") == "event_invalid" and head.get("Faas-Msg-Id") == ticket.message_id:
                    queue.put_nowait((ticket, Reply.undecodable(head)))

            subscriptions.append(await self._nats.subscribe(ticket.outcome_subject, cb=take))
            subscriptions.append(await self._nats.subscribe(subjects.dead(ticket.tenant, ticket.function), cb=take_letter))
        try:
            if subscriptions:
                await self._nats.jetstream().account_info()  # a fence: an answer of the server comes after its subscriptions
            yield queue
        finally:
            for subscription in subscriptions:
                with suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    async def functions(self, name: str = "") -> list[FunctionReport]:
        """Every function of every node, the invalid ones with what is wrong, by tenant and name; with a `name`, those of that name in full."""
        found: dict[tuple[str, str], FunctionReport] = {}
        for node in await self._nodes():
            try:
                message = await self._ask(subjects.node(node, "functions"), name.encode(), {}, wait_s=QUESTION_S)
            except (TimeoutError, nats.errors.NoRespondersError):
                continue  # it stopped in this moment
            for report in msgspec.json.decode(message.data, type=list[FunctionReport]):
                known = found.get((report.tenant, report.name))
                if known is None or known.state == "invalid" or (report.loaded and not known.loaded):
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

    said: list[str] = []

    async def note(error: Exception) -> None:
        """Total, as nats-py wants it. Once connected, errors come back from the calls that they concern."""
        said[:] = [str(error) or type(error).__name__]

    client = NatsClient()
    try:
        async with asyncio.timeout(CONNECT_S + 2):  # max_reconnect_attempts: nats-py counts those of a first connection too
            await client.connect(address, connect_timeout=int(CONNECT_S), max_reconnect_attempts=1, reconnect_time_wait=0, error_cb=note)
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):  # the last: of a client that got no further than the URL
            async with asyncio.timeout(1):
                await client.close()
        why = said[0] if said else str(error) or type(error).__name__
        raise BusUnavailable(
            f"no NATS at {address.rpartition('@')[2]}: {why.removeprefix('nats: ').strip(chr(39))}; is the node running?"
        ) from error
    client.options |= {"max_reconnect_attempts": 60, "reconnect_time_wait": 1}
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


def no_such_function(function: str, tenant: str | None, others: Iterable[str]) -> NoSuchFunction:
    """`tenant` None: of any; `others` are the tenants that have a function of that name."""
    of = f" of tenant {tenant}" if tenant is not None else ""
    if named := ", ".join(sorted(others)):
        return NoSuchFunction(f"no function {function}{of}; there is one of {named}: give --tenant {named.partition(',')[0]}")
    return NoSuchFunction(f"no function {function}{of}; `faas functions` lists what there is")


def _check_name(function: str, tenant: str) -> None:
    """Names that no function can have have no subject either."""
    for what, name in (("function", function), ("tenant", tenant)):
        if not _NAME.fullmatch(name):
            raise NoSuchFunction(f"no {what} {name!r}: a name begins with a-z, then a-z, 0-9 and -; `faas functions` lists what there is")


def _seconds(duration: str | float) -> float:
    try:
        return float(Duration.parse(duration)) if isinstance(duration, str) else float(duration)
    except ValueError as error:
        raise ConfigInvalid(f"timeout: {error}") from error
