"""A client for everyone who calls functions; the command line stands on it.

A foreign program on the bus: it runs functions and waits, hands in durable events, follows streams and logs, and knows nothing of how a node is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as NatsClient

from faas import subjects
from faas.calling.cancels import cancel, function_of
from faas.calling.checks import check_invocation, check_name, deadline_in, keyed, seconds_of
from faas.calling.connection import PAUSE_S, QUESTION_S, Connection, open_connection
from faas.calling.flows import in_order, items_of, lines_of
from faas.calling.history import RunInFull, Why, in_full, moment_of, told
from faas.calling.letters import Letter, Which, letters, redrive, remove
from faas.calling.outcomes import listening, outcomes_of
from faas.calling.payloads import CALL_KEPT_S, EVENT_KEPT_S, carried, fetched, send, store
from faas.envelope import Outgoing, Published, Reply, Ticket, completed, encode, outgoing
from faas.errors import BusUnavailable, ConfigInvalid, NoSuchFunction
from faas.model import OUTCOME_OF_REASON, FunctionReport
from faas.runs import RUNS_LIMIT, Cancelled, Filter, LogLine, Run

LISTED = "`faas functions` lists what there is, and a node finds a new function when it starts"


class Client:
    """A connection to the bus of a node or a cluster. Made by `connect`; any number of calls may run at once."""

    def __init__(self, connection: Connection, close: Callable[[], Awaitable[None]]) -> None:
        self._connection, self._close = connection, close

    async def close(self) -> None:
        """End the connection; where `connect` was entered as a block, leaving that does it."""
        await self._close()

    @property
    def nats(self) -> NatsClient:
        """The connection itself, for what this class has no word for."""
        return self._connection.nats

    async def invoke(
        self,
        function: str,
        data: object = None,
        *,
        tenant: str = "default",
        timeout: str | float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Run a function and wait for its result. `timeout` ("10s", or seconds) bounds the whole call.

        Whoever repeats an `idempotency_key` within a day gets the outcome of the first call with it, which runs once.
        Raises InvocationFailed where it ends as anything but succeeded, NoSuchFunction where nobody has it.
        """
        body, head = encode(data, headers or {})
        reply = await self.request(function, body, tenant=tenant, timeout=timeout, headers=head, idempotency_key=idempotency_key)
        return reply.result

    async def request(
        self,
        function: str,
        body: bytes,
        *,
        tenant: str = "default",
        timeout: str | float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Reply:
        """Run a function on a body as it is, and wait for its answer, whatever end it names."""
        check_name(function, tenant)
        body, head = encode(body, completed(headers or {}))
        wait_s, kept = deadline_in(head, timeout), keyed(head, idempotency_key)  # kept: for whoever repeats it
        subject = subjects.invoke(tenant, function)
        kept_s = EVENT_KEPT_S if kept else min(CALL_KEPT_S, wait_s)
        try:
            async with asyncio.timeout(wait_s):
                body, head = await carried(self._connection, subject, body, headers=head, kept_s=kept_s, once=True)
                while True:
                    message = await self._connection.ask(subject, body, head, wait_s=wait_s)
                    answer = message.headers or {}
                    if "Faas-Outcome" in answer or answer.get("Nats-Service-Error-Code") != "503":
                        return await fetched(self._connection, Reply(answer, message.data), read_once=not kept)
                    await asyncio.sleep(PAUSE_S)  # nothing was started; another node, or the next start, answers
        except TimeoutError:
            raise BusUnavailable(f"no answer from {function} within {wait_s:g} s") from None
        except nats.errors.NoRespondersError:
            raise await self._no_such(function, tenant) from None

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
        check_name(function, tenant)
        event = outgoing(subjects.submit(tenant, function), data, headers or {}, id=id)
        try:
            await store(self._connection, subjects.submit(tenant, function), event, once=True)
        except NoSuchFunction:
            raise await self._no_such(function, tenant) from None
        return event.ticket(tenant, function)

    async def outcome(self, ticket: Ticket, *, wait: str | float = "60s") -> Reply:
        """The outcome of a durable invocation, when it is there. Raises TimeoutError after `wait`."""
        if not isinstance(ticket, Ticket):
            raise ConfigInvalid(
                f"{str(ticket)[:80]!r} is no ticket; give what submit returned, or faas.Ticket(tenant, function, invocation)"
            )
        async with asyncio.timeout(seconds_of(wait, "wait")), listening(self._connection, [ticket]) as heard:
            return await anext(reply async for _, reply in outcomes_of(self._connection, [ticket], heard))

    async def publish(
        self, subject: str, data: object = None, *, id: str | None = None, headers: Mapping[str, str] | None = None, stored: bool = True
    ) -> Published:
        """Publish an event. `stored` waits until a stream has it; without it the event is core NATS, at most once."""
        return await self._publish(subject, outgoing(subject, data, headers or {}, id=id), stored=stored)

    async def _publish(self, subject: str, event: Outgoing, *, stored: bool) -> Published:
        if (problem := subjects.problem_with(subject)) is not None:
            raise ConfigInvalid(f"{subject[:80]!r} cannot be published to: {problem}")
        if stored:
            return Published(event.id, await store(self._connection, subject, event, once=False))
        await send(self._connection, subject, event)
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
        async with listening(self._connection, tickets) as heard:
            published = await self._publish(subject, event, stored=bool(tickets) or not fleeting)
            published.waiting, published.at_most_once = tickets, [name for _, name in fleeting]
            yield published, outcomes_of(self._connection, tickets, heard)  # the same event may have ended before it was published again

    async def stream(
        self,
        function: str,
        data: object = None,
        *,
        tenant: str = "default",
        timeout: str | float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Any]:
        """Run a function and iterate over the items of its generator as they come; any other kind of handler gives one item.

        JSON items are values, text is str, everything else bytes. Raises InvocationFailed behind the last item where the function fails:
        it is not run again once an item is out.
        """
        check_name(function, tenant)
        body, head = encode(data, completed(headers or {}))
        wait_s = deadline_in(head, timeout)
        subject = subjects.invoke(tenant, function)
        body, head = await carried(self._connection, subject, body, headers=head, kept_s=min(CALL_KEPT_S, wait_s), once=True)
        async for item in items_of(self._connection, subject, body, head=head, wait_s=wait_s):
            if item is None:
                raise await self._no_such(function, tenant)
            yield item.value

    async def map(
        self,
        function: str,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int = 64,
        tenant: str = "default",
        timeout: str | float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Any]:
        """The results of a function for each item, in the order of the items, at most `in_flight` of them running or waiting to be taken.

        `timeout` bounds each call. Raises InvocationFailed when the turn of an item that failed has come; what runs then is given up.
        """

        async def call(item: Any) -> Any:
            return await self.invoke(function, item, tenant=tenant, timeout=timeout, headers=headers)

        async for result in in_order(call, items, in_flight=in_flight):
            yield result

    async def logs(
        self, function: str, *, tenant: str = "default", invocation: str = "", follow: bool = False, since: str | float | None = None
    ) -> AsyncIterator[LogLine]:
        """The lines that a function printed and logged, oldest first, of one invocation or of all that are kept; `follow` goes on with what comes.

        `since` ("10m", or seconds) leaves out what is older.
        """
        check_name(function, tenant)
        if invocation:
            check_invocation(invocation)
        subject = subjects.log(tenant, function, invocation or "*")
        async for line in lines_of(self._connection, subject, follow=follow, since_s=None if since is None else seconds_of(since, "since")):
            yield line

    async def runs(
        self,
        *,
        function: str = "",
        tenant: str = "",
        outcome: str = "",
        since: str | float | None = None,
        until: str | float | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """What ran on any node in the last 30 days, newest first. `outcome` may be "open".

        `since` and `until` are moments ("2026-11-24T08:00:00Z") or how long ago ("10m", or seconds).
        """
        known = ("open", *sorted(set(OUTCOME_OF_REASON.values())))
        if outcome and outcome not in known:
            raise ConfigInvalid(f"outcome: {outcome[:40]!r} is none; {', '.join(known)}")
        if not 1 <= limit <= RUNS_LIMIT:
            raise ConfigInvalid(f"limit: {limit} is not between 1 and {RUNS_LIMIT}")
        asked = Filter(
            function=function,
            tenant=tenant,
            outcome=outcome,
            since_ms=moment_of("since", since),
            until_ms=moment_of("until", until),
            limit=limit,
        )
        return list((await told(self._connection, asked)).runs)

    async def run(self, invocation: str) -> RunInFull:
        """One invocation in full: its attempts and what they used, its dead letter, and what a node does with it now. Raises NoSuchInvocation."""
        check_invocation(invocation)
        return (await in_full(self._connection, invocation))[0]

    async def why(self, invocation: str) -> Why:
        """Why an invocation waits, runs, or ended as it did. Raises NoSuchInvocation."""
        check_invocation(invocation)
        return (await in_full(self._connection, invocation))[1]

    async def cancel(self, invocation: str | Ticket, *, function: str = "", tenant: str = "default") -> Cancelled:
        """End an invocation as `cancelled`: waiting in the stream, in a back-off, on a node's queue, or running, on whichever node.

        A handler that runs is asked to stop and killed after two seconds. Without `function` every function is asked. The answer says whether it won.
        """
        if isinstance(invocation, Ticket):
            function, tenant, invocation = invocation.function, invocation.tenant, invocation.invocation
        check_invocation(invocation)
        function = function or await function_of(self._connection, tenant, invocation)
        if function:
            check_name(function, tenant)
            return await cancel(self._connection, tenant=tenant, function=function, invocation=invocation)
        for report in await self.functions():
            if report.tenant == tenant and report.state == "ready":
                answer = await cancel(self._connection, tenant=tenant, function=report.name, invocation=invocation)
                if answer.known:
                    return answer
        return Cancelled(cancelled=False, known=False)

    def letters(
        self,
        function: str = "",
        *,
        tenant: str = "default",
        invocations: Iterable[str] = (),
        since: str | float | None = None,
        until: str | float | None = None,
    ) -> AsyncIterator[Letter]:
        """The dead letters of a function, or of all of a tenant, oldest first; `since` and `until` ("1h", or seconds) are before now."""
        if function:
            check_name(function, tenant)
        which = Which(
            tenant=tenant,
            function=function,
            invocations=tuple(invocations),
            since_s=None if since is None else seconds_of(since),
            until_s=None if until is None else seconds_of(until),
        )
        return letters(self._connection, which)

    async def redrive(self, letter: Letter) -> Ticket:
        """Have the event of a dead letter run again: the same event, a new invocation, whose age starts now. The letter goes.

        Raises ConfigInvalid for one that cannot be redriven.
        """
        return Ticket(letter.tenant, letter.function, await redrive(self._connection, letter))

    async def bury(self, letter: Letter) -> None:
        """Throw a dead letter away for good."""
        await remove(self._connection, letter)

    async def functions(self, name: str = "") -> list[FunctionReport]:
        """Every function of every node, the invalid ones with what is wrong, by tenant and name; with a `name`, those of that name in full."""
        found: dict[tuple[str, str], FunctionReport] = {}
        for node in await self._connection.nodes():
            try:
                message = await self._connection.ask(subjects.node(node, "functions"), name.encode(), {}, wait_s=QUESTION_S)
            except (TimeoutError, nats.errors.NoRespondersError):
                continue  # it stopped in this moment
            for report in msgspec.json.decode(message.data, type=list[FunctionReport]):
                known = found.get((report.tenant, report.name))
                if known is None or known.state == "invalid" or (report.loaded and not known.loaded):
                    found[(report.tenant, report.name)] = report
        return [found[key] for key in sorted(found)]


class Connecting:
    """What `connect` returns: entered it is a Client that closes at the end of the block; awaited, as in a notebook, one that `close` closes."""

    def __init__(self, opening: AbstractAsyncContextManager[Connection]) -> None:
        self._opening = opening

    async def __aenter__(self) -> Client:
        return Client(await self._opening.__aenter__(), self._close)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._opening.__aexit__(kind, error, trace)

    async def _close(self) -> None:
        await self._opening.__aexit__(None, None, None)

    def __await__(self) -> Generator[Any, None, Client]:
        return self.__aenter__().__await__()


def connect(url: str | None = None, *, state: Path | str = ".faas", nkey: Path | str | None = None) -> Connecting:
    """Connect to the bus at `url`, else at FAAS_NATS, else to the node whose state folder this is.

    `nkey` is a seed file, else FAAS_NKEY names one: what a bus knows you by that `faas nats-config` wrote users for.

    Raises ConfigInvalid where no node is named, BusUnavailable where nobody answers.
    """
    return Connecting(open_connection(url, state=Path(state), nkey=None if nkey is None else Path(nkey)))


def no_such_function(function: str, tenant: str | None, others: Iterable[str]) -> NoSuchFunction:
    """`tenant` None: of any; `others` are the tenants that have a function of that name."""
    of = f" of tenant {tenant}" if tenant is not None else ""
    if named := ", ".join(sorted(others)):
        return NoSuchFunction(f"no function {function}{of}; there is one of {named}: give --tenant {named.partition(',')[0]}")
    return NoSuchFunction(f"no function {function}{of}; {LISTED}")
