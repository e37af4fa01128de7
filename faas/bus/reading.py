"""Reads what a stream holds, in order, by batched direct gets: no consumer is left behind, and nothing is acknowledged.

A stream of somebody else may take no direct get; it is read through its leader, message by message.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import msgspec

from faas.bus.connection import ApiError, Bus, Message
from faas.bus.messages import GetAnswer, Stored, StoredMessage, decode_head
from faas.errors import BusUnavailable

BATCH = 256
BATCH_BYTES = 4 * 2**20
ANSWER_S = 5.0
NO_MESSAGE, END_OF_BATCH, NO_RESPONDERS = 404, 204, 503


async def messages_of(bus: Bus, stream: str, subject: str, *, after: int = 0, limit: int = 1_000_000) -> AsyncIterator[StoredMessage]:
    """The messages of a stream under a subject, wildcards allowed, behind the sequence `after`, at most `limit`. Raises BusUnavailable."""
    answers: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bus.new_inbox()
    subscription = await bus.subscribe(inbox, answers.put_nowait)
    try:
        while limit > 0:
            request = {"seq": after + 1, "next_by_subj": subject, "batch": min(BATCH, limit), "max_bytes": BATCH_BYTES}
            await bus.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), reply=inbox)
            more = False
            while True:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        message = await answers.get()
                except TimeoutError:
                    raise BusUnavailable(f"{stream} was not read within {ANSWER_S:g} s") from None
                head = message.headers or {}
                if message.status == NO_MESSAGE:
                    return
                if message.status == NO_RESPONDERS:
                    async for one in _one_by_one(bus, stream, subject, after=after, limit=limit):
                        yield one
                    return
                if message.status == END_OF_BATCH:
                    more = int(head.get("Nats-Num-Pending", "0")) > 0
                    break
                if message.status or "Nats-Sequence" not in head:
                    raise BusUnavailable(f"{stream} cannot be read: status {message.status} {head.get('Description', '')}")
                after, limit = int(head["Nats-Sequence"]), limit - 1
                yield StoredMessage(subject=head.get("Nats-Subject", ""), sequence=after, data=message.data, headers=head)
            if not more:
                return
    finally:
        await subscription.unsubscribe()


async def holds_another(bus: Bus, stored: Stored, subject: str) -> bool:
    """Whether what a stream has had under a `Nats-Msg-Id` is no event of this subject; where it is gone, nobody can tell, and it counts as another.

    A stream knows one id once, whoever used it first: an event that a stranger keeps out like this would be taken for stored, and lost.
    """
    try:
        found = (await bus.get(stored.stream, {"seq": stored.sequence})).message
    except ApiError:
        return True
    return found is None or found.subject != subject


async def _one_by_one(bus: Bus, stream: str, subject: str, *, after: int, limit: int) -> AsyncIterator[StoredMessage]:
    for _ in range(limit):
        try:
            found = (await bus.api(f"STREAM.MSG.GET.{stream}", {"seq": after + 1, "next_by_subj": subject}, GetAnswer)).message
        except ApiError as error:
            if error.status != NO_MESSAGE:
                raise BusUnavailable(f"{stream} cannot be read: {error}") from error
            return
        if found is None:
            return
        after = found.seq
        head = {**(decode_head(base64.b64decode(found.hdrs)) if found.hdrs else {}), "Nats-Time-Stamp": found.time}
        yield StoredMessage(subject=found.subject, sequence=after, data=base64.b64decode(found.data), headers=head)
