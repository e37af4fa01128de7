"""Bodies above the bus limit, for a caller: put into the bucket before an event goes out, fetched where an answer names one.

Speaks to the bucket like any foreign program would. Whole bodies are in memory here, as the caller has or wants them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
import nats.errors
from nats.aio.msg import Msg

from faas.calling.connection import CONNECT_S, Connection
from faas.envelope import HEAD_RESERVE_BYTES, STRUCTURED, Outgoing, Reply, check_size, completed, fits, in_binary_mode
from faas.errors import BusUnavailable, FaasError, NoSuchFunction, StoreRefused
from faas.objects import READ_ONCE, Answer, Heard, Objects, Refused, name_in, part_of, reference
from faas.subjects import PAYLOADS

EVENT_KEPT_S = 8 * 86_400 + 3600
"""As long as an event can wait, and a little more."""
CALL_KEPT_S = 3600
"""As long as a synchronous call is waited for."""
STORE_S = 10.0
HEAD_BYTES = 1024


async def carried(
    connection: Connection, subject: str, body: bytes, *, headers: Mapping[str, str], kept_s: float, once: bool
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) as the bus takes them: as they are, or nothing and a `ce-dataref` to where the body is now, for `kept_s`.

    `once`: one function alone gets it. Its name holds 16 random bytes: nobody reads what he was not told of.
    Raises MessageTooLarge where it is the headers that are too much, StoreRefused where the bucket is full, BusUnavailable.
    """
    limit_bytes = connection.nats.max_payload
    if fits(body, headers, limit_bytes=limit_bytes) or not fits(b"", headers, limit_bytes=limit_bytes):
        return body, dict(headers)
    if any(name.lower() == "content-type" and value.lower().startswith(STRUCTURED) for name, value in headers.items()):
        body, headers = in_binary_mode(body, headers)
    prefix = f"{READ_ONCE if once else ''}{secrets.token_urlsafe(16)}"
    name = await Objects(_OnConnection(connection)).write(part_of(body), len(body), prefix=prefix, kept_s=kept_s)
    return b"", completed({**headers, "ce-dataref": reference(name)})


async def store(connection: Connection, subject: str, event: Outgoing, *, once: bool) -> str:
    """Publish an event, and the stream that has it; its body is in the bucket where the bus does not take it. Raises as `carried` and NoSuchFunction."""
    body, head = await carried(connection, subject, event.body, headers=event.headers, kept_s=EVENT_KEPT_S, once=once)
    try:
        stream, had = await connection.store(subject, body, head)
    except NoSuchFunction:
        await _drop(connection, event.headers, head)
        raise
    if had:  # with a body under another name: this one nobody will ask for
        await _drop(connection, event.headers, head)
    return stream


async def send(connection: Connection, subject: str, event: Outgoing) -> None:
    """The same for an event that nothing stores. Raises as `carried`."""
    body, head = await carried(connection, subject, event.body, headers=event.headers, kept_s=EVENT_KEPT_S, once=False)
    check_size(subject, body, head, limit_bytes=connection.nats.max_payload)
    try:
        await connection.nats.publish(subject, body, headers=head)
        await connection.nats.flush(timeout=int(CONNECT_S))
    except nats.errors.Error as error:
        raise BusUnavailable(f"the connection to the bus failed: {error}") from error


async def _drop(connection: Connection, before: Mapping[str, str], carried: Mapping[str, str]) -> None:
    """What `carried` put into the bucket for an event that nobody took, if it did; `before` are the headers that the event had."""
    if carried.get("ce-dataref") != before.get("ce-dataref"):
        await let_go(connection, carried.get("ce-dataref", ""))


async def let_go(connection: Connection, reference: str) -> None:
    """Nobody will read an object of the bucket again; whoever may not say so leaves it to its time."""
    name = name_in(reference)
    if name is not None:
        with suppress(FaasError):
            objects = Objects(_OnConnection(connection))
            await objects.remove(await objects.find(name))


async def fetched(connection: Connection, reply: Reply, *, read_once: bool = False) -> Reply:
    """An answer with its body, wherever that is; with `read_once` nobody else will read it, and it leaves the bucket. Raises PayloadLost, BusUnavailable."""
    named = reply.headers.get("Faas-Object", "")
    if not named or reply.body:
        return reply
    name = name_in(named)
    if name is None:
        raise BusUnavailable(f"the answer is in {named[:80]!r}, which is not in the bucket of the runtime")
    objects = Objects(_OnConnection(connection))
    info = await objects.find(name)
    body = bytearray()
    async with aclosing(objects.read(info)) as parts:
        async for chunks in parts:
            for chunk in chunks:
                body += chunk
    if read_once:
        with suppress(FaasError):  # not allowed to every user of the bus; its time ends soon all the same
            await objects.remove(info)
    return Reply(reply.headers, bytes(body))


class _OnConnection:
    """What `Objects` asks of a connection, on a caller's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def chunk_limit_bytes(self) -> int:
        return self._connection.nats.max_payload - HEAD_RESERVE_BYTES - HEAD_BYTES

    async def store(self, subject: str, body: bytes, head: Mapping[str, str]) -> int:
        answer = await self._ask(subject, body, head, wait_s=STORE_S)
        if answer.error is not None or not answer.seq:
            said = answer.error.description if answer.error is not None else "it was answered by something that is no stream"
            raise StoreRefused(f"the payload could not be put into {PAYLOADS}: {said}")
        return answer.seq

    async def api(self, suffix: str, request: Mapping[str, object]) -> Answer:
        answer = await self._ask(f"$JS.API.{suffix}", msgspec.json.encode(request), {}, wait_s=CONNECT_S)
        if answer.error is not None:
            raise Refused(answer.error.description, answer.error.err_code)
        return answer

    async def _ask(self, subject: str, body: bytes, head: Mapping[str, str], *, wait_s: float) -> Answer:
        try:
            message = await self._connection.ask(subject, body, head, wait_s=wait_s)
            return msgspec.json.decode(message.data, type=Answer)
        except nats.errors.NoRespondersError:
            raise BusUnavailable(f"no bucket {PAYLOADS} on this bus; is a node running?") from None
        except TimeoutError as error:
            raise BusUnavailable(f"{subject}: no answer within {wait_s:g} s") from error
        except msgspec.DecodeError as error:
            raise BusUnavailable(f"{subject} was answered by something that is no stream") from error

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[str, asyncio.Queue[Heard]]]:
        heard: asyncio.Queue[Heard] = asyncio.Queue()

        async def take(message: Msg) -> None:
            headers = message.headers or {}
            status = headers.get("Status", "") if not message.data else ""
            heard.put_nowait(Heard(int(status) if status.isdecimal() else 0, headers, message.data))

        inbox = self._connection.nats.new_inbox()
        subscription = await self._connection.nats.subscribe(inbox, cb=take)
        try:
            yield inbox, heard
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def say(self, subject: str, body: bytes, reply: str) -> None:
        try:
            await self._connection.nats.publish(subject, body, reply=reply)
        except nats.errors.Error as error:
            raise BusUnavailable(f"the connection to the bus failed: {error}") from error
