"""Waiting for outcomes: what is stored already, what comes, and what came while the connection was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.msg import Msg

from faas import subjects
from faas.calling.connection import CONNECT_S, Connection, Denied
from faas.calling.payloads import fetched
from faas.envelope import Reply, Ticket
from faas.errors import BusUnavailable

Heard = asyncio.Queue[tuple[Ticket, Reply] | None]
"""Outcomes as they are heard; None: look up what is stored, for something may have come that nobody heard."""


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
    connection.waiting.add(queue)
    subscriptions = []
    try:
        for ticket in tickets:

            async def take(message: Msg, ticket: Ticket = ticket) -> None:
                queue.put_nowait((ticket, Reply(message.headers or {}, message.data)))

            async def take_letter(message: Msg, ticket: Ticket = ticket) -> None:
                head = message.headers or {}
                if head.get("Faas-Reason") == "event_invalid" and head.get("Faas-Msg-Id") == ticket.message_id:
                    queue.put_nowait((ticket, Reply.undecodable(head)))

            subscriptions.append(await connection.nats.subscribe(ticket.outcome_subject, cb=take))
            subscriptions.append(await connection.nats.subscribe(subjects.dead(ticket.tenant, ticket.function), cb=take_letter))
        if subscriptions:
            with suppress(nats.errors.Error, TimeoutError, BusUnavailable):  # lost in this moment: what comes is looked up when it is back
                await connection.ask(
                    "$JS.API.INFO", b"", {}, wait_s=CONNECT_S
                )  # a fence: an answer of the server comes after its subscriptions
        yield queue
    finally:
        connection.waiting.discard(queue)
        for subscription in subscriptions:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()


async def outcomes_of(connection: Connection, tickets: list[Ticket], heard: Heard) -> AsyncIterator[tuple[Ticket, Reply]]:
    """One outcome for each ticket, those first that are stored; `heard` is filled by `listening` to the same.

    A result above the bus limit is fetched. What the guard refused may be heard beside it. Stored ones are looked up again when the connection was lost: what came meanwhile was heard by nobody.
    """
    left = {ticket.invocation: ticket for ticket in tickets}
    heard.put_nowait(None)  # the first look
    while left:
        word = await heard.get()
        if word is not None:
            ticket, reply = word
            if left.pop(ticket.invocation, None) is not None:
                yield ticket, await fetched(connection, reply)
            continue
        for ticket in list(left.values()):
            if (found := await _stored_if_there(connection, ticket)) is not None:
                del left[ticket.invocation]
                yield ticket, await fetched(connection, found)


async def _stored_if_there(connection: Connection, ticket: Ticket) -> Reply | None:
    """What is stored; None too while the connection is away, after which it is looked up again, and for a user who only hears outcomes."""
    try:
        return await stored(connection, ticket)
    except Denied:
        return None
    except (TimeoutError, BusUnavailable):
        if connection.nats.is_connected:
            raise
        return None
