"""Waiting for outcomes: what is stored already, what comes, and what came while the connection was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.msg import Msg

from faas import subjects
from faas.calling.connection import CONNECT_S, Connection
from faas.envelope import Reply, Ticket
from faas.errors import BusUnavailable

Heard = asyncio.Queue[tuple[Ticket, Reply]]


async def stored(connection: Connection, ticket: Ticket) -> Reply | None:
    """The outcome, if it is there already."""
    try:
        message = await connection.ask(f"$JS.API.DIRECT.GET.{subjects.OUTCOMES}.{ticket.outcome_subject}", b"", {}, wait_s=CONNECT_S)
    except nats.errors.NoRespondersError:
        raise BusUnavailable(f"no stream {subjects.OUTCOMES} on this bus; is a node running?") from None
    headers = message.headers or {}
    return Reply(headers, message.data) if "Faas-Outcome" in headers else None


@asynccontextmanager
async def listening(connection: Connection, tickets: Iterable[Ticket]) -> AsyncIterator[Heard]:
    """Outcomes as they come; the dead letter of an event that could not be decoded counts as one, since nothing else will."""
    queue: Heard = asyncio.Queue()
    subscriptions = []
    for ticket in tickets:

        async def take(message: Msg, ticket: Ticket = ticket) -> None:
            queue.put_nowait((ticket, Reply(message.headers or {}, message.data)))

        async def take_letter(message: Msg, ticket: Ticket = ticket) -> None:
            head = message.headers or {}
            if head.get("Faas-Reason") == "event_invalid" and head.get("Faas-Msg-Id") == ticket.message_id:
                queue.put_nowait((ticket, Reply.undecodable(head)))

        subscriptions.append(await connection.nats.subscribe(ticket.outcome_subject, cb=take))
        subscriptions.append(await connection.nats.subscribe(subjects.dead(ticket.tenant, ticket.function), cb=take_letter))
    try:
        if subscriptions:
            with suppress(nats.errors.Error):  # lost in this moment: what comes is looked up when it is back
                await connection.nats.jetstream().account_info()  # a fence: an answer of the server comes after its subscriptions
        yield queue
    finally:
        for subscription in subscriptions:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()


async def outcomes_of(connection: Connection, tickets: list[Ticket], heard: Heard) -> AsyncIterator[tuple[Ticket, Reply]]:
    """One outcome for each ticket, those first that are stored; `heard` is filled by `listening` to the same.

    What the guard refused may be heard beside it. Stored ones are looked up again when the connection was lost: what came meanwhile was heard by nobody.
    """
    left = {ticket.invocation: ticket for ticket in tickets}
    while left:
        reconnected = connection.reconnected
        for ticket in list(left.values()):
            if (reply := await _stored_if_there(connection, ticket)) is not None:
                del left[ticket.invocation]
                yield ticket, reply
        if not left:
            return
        async for ticket, reply in _until(reconnected, heard):
            if ticket.invocation in left:
                del left[ticket.invocation]
                yield ticket, reply
            if not left:
                return


async def _stored_if_there(connection: Connection, ticket: Ticket) -> Reply | None:
    """What is stored; None too while the connection is away, after which it is looked up again."""
    try:
        return await stored(connection, ticket)
    except (TimeoutError, BusUnavailable):
        if connection.nats.is_connected:
            raise
        return None


async def _until(stop: asyncio.Event, heard: Heard) -> AsyncIterator[tuple[Ticket, Reply]]:
    """What is heard until the event is set."""
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(stop.wait())
        try:
            while not stopping.done():
                hearing = group.create_task(heard.get())
                try:
                    await asyncio.wait((stopping, hearing), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hearing.cancel()
                if hearing.done() and not hearing.cancelled():
                    yield hearing.result()
        except GeneratorExit:
            pass  # whoever reads has enough; the group would wrap this in a group of its own
        finally:
            stopping.cancel()
