"""What can be read of a bus with nothing left behind: its server, and the newest messages of one subject of a stream. Knows no stream by name.

Messages come by direct gets, without a consumer. A batch runs forward from a sequence, and every answer says how many of the subject follow it; so where the newest ones begin is found
by halving. Source: NATS ADR-31, batched direct get.
"""

from __future__ import annotations

import asyncio

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from faas.errors import BusUnavailable

ANSWER_S = 5.0
BATCH_BYTES = 8 * 2**20
END_OF_BATCH, NOTHING = "204", "404"


async def server(client: Client) -> tuple[str, bool]:
    """(version, whether JetStream answers this user) of the server."""
    found = client.connected_server_version
    version = f"{found.major}.{found.minor}.{found.patch}"
    try:
        answer = await client.request("$JS.API.INFO", b"", timeout=ANSWER_S)
    except nats.errors.Error:
        return version, False
    return version, b'"error"' not in answer.data[:200]


class _Config(msgspec.Struct, frozen=True):
    max_bytes: int = -1


class _State(msgspec.Struct, frozen=True):
    bytes: int = 0


class _Stream(msgspec.Struct):
    config: _Config = _Config()
    state: _State = _State()


async def room(client: Client, stream: str) -> tuple[int, int]:
    """(bytes that a stream holds, bytes that it may hold; -1: no bound). Raises BusUnavailable."""
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=ANSWER_S)
        found = msgspec.json.decode(answer.data, type=_Stream)
    except (nats.errors.Error, msgspec.DecodeError) as error:
        raise BusUnavailable(f"{stream} cannot be looked at: {error}") from error
    return found.state.bytes, found.config.max_bytes


async def newest(client: Client, stream: str, subject: str, *, limit: int) -> list[Msg]:
    """The last `limit` messages of a subject, fewer where they are large, oldest first. Raises BusUnavailable."""
    last = await _one(client, stream, {"last_by_subj": subject})
    if last is None:
        return []
    low, high = 1, _sequence(last)  # the newest `limit` begin after low - 1 and at high at the latest
    while low < high:
        middle = (low + high) // 2
        found = await _one(client, stream, {"seq": middle, "next_by_subj": subject, "batch": 1})
        if found is None:
            break
        if int((found.headers or {}).get("Nats-Num-Pending", 0)) < limit:
            high = middle
        else:
            low = _sequence(found) + 1
    return await _batch(client, stream, {"seq": high, "next_by_subj": subject, "batch": limit, "max_bytes": BATCH_BYTES})


async def _one(client: Client, stream: str, question: dict[str, object]) -> Msg | None:
    """The first answer, None where there is no such message."""
    found = await _batch(client, stream, question, first_only=True)
    return found[0] if found else None


async def _batch(client: Client, stream: str, question: dict[str, object], *, first_only: bool = False) -> list[Msg]:
    inbox, answers = client.new_inbox(), asyncio.Queue[Msg]()
    subscription = await client.subscribe(inbox, cb=answers.put)
    found: list[Msg] = []
    try:
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(question), reply=inbox)
        async with asyncio.timeout(ANSWER_S):
            while True:
                answer = await answers.get()
                status = (answer.headers or {}).get("Status", "") if not answer.data else ""
                if status in (END_OF_BATCH, NOTHING):
                    return found
                if "Nats-Sequence" not in (answer.headers or {}):
                    raise BusUnavailable(f"no stream {stream} on this bus; is a node running?")
                found.append(answer)
                if first_only:
                    return found
    except TimeoutError:
        raise BusUnavailable(f"{stream} did not answer within {ANSWER_S:g} s") from None
    except nats.errors.Error as error:
        raise BusUnavailable(f"the connection to the bus failed: {error}") from error
    finally:
        await subscription.unsubscribe()


def _sequence(message: Msg) -> int:
    return int((message.headers or {})["Nats-Sequence"])
