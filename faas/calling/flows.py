"""What comes in many parts: items of a stream, results of many calls in order, lines of a log.

Each is an async iterator that cleans up when its reader stops early. Knows no node.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from faas import subjects
from faas.calling.connection import PAUSE_S, Connection
from faas.calling.payloads import fetched, let_go
from faas.envelope import Reply, check_size, decode_body
from faas.errors import BusUnavailable, ConfigInvalid
from faas.runs import LogLine
from faas.worker.wire import CHUNK_LIMIT_BYTES

IN_FLIGHT_LIMIT = 4096
ITEM_S = 5.0
"""For an item that is there already when the time is up: its reader may have been slow."""
MESSAGE_S = 5.0
"""Between two messages that the stream says are there."""


@dataclass(slots=True, frozen=True)
class Item:
    """One item of a stream, decoded."""

    value: Any


# ---------------------------------------------------------------- items of a stream


async def items_of(
    connection: Connection, subject: str, body: bytes, *, head: Mapping[str, str], wait_s: float
) -> AsyncIterator[Item | None]:
    """The items of one synchronous call; None, once, where nobody answers for it. Raises InvocationFailed, BusUnavailable."""
    inbox = connection.nats.new_inbox()
    chunks, answers = f"{inbox}.items", f"{inbox}.answer"  # on one subscription, so that the answer comes behind the last item
    asked = {**head, "Faas-Chunk-To": chunks}
    check_size(subject, body, asked, limit_bytes=connection.nats.max_payload)
    subscription = await connection.nats.subscribe(f"{inbox}.*")
    messages, reading = subscription.messages, _Reading()
    until_monotonic = time.monotonic() + wait_s
    try:
        await connection.nats.publish(subject, body, reply=answers, headers=asked)
        while True:
            async with asyncio.timeout(
                max(ITEM_S, until_monotonic - time.monotonic())
            ):  # around no yield: it would cancel the reader's own work
                message = await anext(messages, None)
            if message is None:
                raise BusUnavailable("the connection was closed before the stream had ended")
            said = message.headers or {}
            if message.subject == chunks:
                for item in reading.take(message):
                    yield item
            elif said.get("Status") == "503" and not message.data:
                yield None
                return
            elif "Faas-Outcome" not in said and said.get("Nats-Service-Error-Code") == "503":
                await asyncio.sleep(PAUSE_S)  # nothing was started; another node, or the next start, answers
                await connection.nats.publish(subject, body, reply=answers, headers=asked)
            else:
                reply = Reply(said, message.data)
                reading.end(reply)
                if reading.empty and ("Faas-Object" in said or len(reply.body) > CHUNK_LIMIT_BYTES):
                    yield Item((await fetched(connection, reply, read_once=True)).result)  # no generator's, and too large for an item
                elif reply.outcome == "succeeded":
                    await let_go(connection, said.get("Faas-Object", ""))  # it is the items once more
                return
    except TimeoutError:
        raise BusUnavailable(f"no answer within {wait_s:g} s") from None
    except nats.errors.Error as error:
        raise BusUnavailable(f"the connection to the bus failed: {error}") from error
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()


class _Reading:
    """How far a stream has been read. NATS drops what is not taken in time, so its numbers are checked."""

    def __init__(self) -> None:
        self._expected, self._whole = 1, False

    def take(self, message: Msg) -> Iterable[Item]:
        """The item of a message; none where it is the end of the stream. Raises BusUnavailable where one before it was lost."""
        said = message.headers or {}
        if said.get("Faas-Seq") != str(self._expected):
            raise BusUnavailable(f"items from {self._expected} to {said.get('Faas-Seq')} of the stream were lost; read it faster")
        self._expected, self._whole = self._expected + 1, "Faas-Eos" in said
        return () if self._whole else (Item(decode_body(message.data, said)),)

    @property
    def empty(self) -> bool:
        """Whether its end came without an item."""
        return self._whole and self._expected == 2

    def end(self, reply: Reply) -> None:
        """The answer behind the last item. Raises InvocationFailed, and BusUnavailable where the stream has no end."""
        if reply.outcome != "succeeded":
            raise reply.failure
        if not self._whole:
            raise BusUnavailable("the end of the stream was lost")


# ---------------------------------------------------------------- many calls


async def in_order(
    call: Callable[[Any], Awaitable[Any]], items: Iterable[Any] | AsyncIterable[Any], *, in_flight: int
) -> AsyncIterator[Any]:
    """What `call` returns for each item, in the order of the items; at most `in_flight` of them at once. Raises what a call raises, at its turn."""
    if not 1 <= in_flight <= IN_FLIGHT_LIMIT:
        raise ConfigInvalid(f"in_flight {in_flight}: between 1 and {IN_FLIGHT_LIMIT}")
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        running: deque[asyncio.Task[tuple[Any, BaseException | None]]] = deque()
        try:
            async for item in _each(items):
                running.append(group.create_task(_caught(call, item)))
                if len(running) < in_flight:
                    continue
                result, failure = await running.popleft()
                if failure is not None:
                    break
                yield result
            while running and failure is None:
                result, failure = await running.popleft()
                if failure is None:
                    yield result
        except GeneratorExit:
            pass  # whoever reads has enough; the group would wrap this in a group of its own
        except Exception as error:  # noqa: BLE001  of the caller's own items: raised as it is, not in a group
            failure = error
        finally:
            for task in running:
                task.cancel()
    if failure is not None:
        raise failure


async def _caught(call: Callable[[Any], Awaitable[Any]], item: Any) -> tuple[Any, BaseException | None]:
    """(result, failure): raised in the group, one failure would end the calls before it too."""
    try:
        return await call(item), None
    except Exception as error:  # noqa: BLE001  raised again at its turn
        return None, error


async def _each(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


# ---------------------------------------------------------------- what a stream holds


async def lines_of(connection: Connection, subject: str, *, follow: bool, since_s: float | None) -> AsyncIterator[LogLine]:
    """The lines that FAAS_LOGS has under a subject, and with `follow` those that come. Raises BusUnavailable."""
    async for message in messages_of(connection, subjects.LOGS, subject, follow=follow, since_s=since_s):
        for line in message.data.splitlines():
            with suppress(msgspec.DecodeError):  # anybody may have written to the stream
                yield msgspec.json.decode(line, type=LogLine)


async def messages_of(
    connection: Connection, stream: str, subject: str, *, follow: bool = False, since_s: float | None = None
) -> AsyncIterator[Msg]:
    """The messages that a stream has under a subject, oldest first, and with `follow` those that come. Raises BusUnavailable."""
    start = None if since_s is None else datetime.fromtimestamp(max(0.0, time.time() - since_s), UTC)
    policy = DeliverPolicy.ALL if start is None else DeliverPolicy.BY_START_TIME
    config = ConsumerConfig(deliver_policy=policy, opt_start_time=start.isoformat() if start else None)  # type: ignore[arg-type]
    jetstream = connection.nats.jetstream()
    try:
        subscription = await jetstream.subscribe(subject, stream=stream, ordered_consumer=True, config=config)
        info = await subscription.consumer_info()
    except nats.js.errors.NotFoundError:
        raise BusUnavailable(f"no stream {stream} on this bus; is a node running?") from None
    except nats.errors.Error as error:
        raise BusUnavailable(f"{stream} cannot be read: {error}") from error
    try:
        left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered is not None else 0)
        while left > 0 or follow:
            try:
                message = await subscription.next_msg(timeout=MESSAGE_S)
            except nats.errors.TimeoutError:
                if not follow:
                    return  # its age ran out meanwhile
                continue
            left -= 1
            yield message
    except nats.errors.Error as error:
        raise BusUnavailable(f"the connection to the bus failed: {error}") from error
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()
            await jetstream.delete_consumer(stream, info.name)  # else it stays a while, and a stream takes a thousand
