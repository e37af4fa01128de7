"""One connection of a caller to the bus: questions, what streams acknowledge, and who answers for the functions.

Knows subjects and headers like any foreign program; what a call means is the client's.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
from msgspec import Struct
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from faas import subjects
from faas.envelope import check_size
from faas.errors import BusUnavailable, ConfigInvalid, NoSuchFunction
from faas.seeds import inbox_of, seed_of

CONNECT_S = 3.0
QUESTION_S = 2.0
STREAM_FULL = 10077
"""JetStream's number where a bound of a stream is reached and it refuses what is new."""
PAUSE_S = 0.1
"""Between two tries where a node that stops has answered 503."""


_DENIED = re.compile(r"permissions violation for publish to \"(.*)\"", re.IGNORECASE)


class Denied(BusUnavailable):
    """The bus knows this user, and does not let it ask that."""

    code = "denied"


class _NodeFile(Struct, frozen=True):
    nats: str


class _Metadata(Struct, frozen=True):
    node: str = ""


class _Info(Struct, frozen=True):
    metadata: _Metadata = _Metadata()


class _Ack(Struct, frozen=True):
    stream: str = ""
    duplicate: bool = False
    error: dict[str, Any] | None = None


class Connection:
    """What the client asks the bus. `nats` is the connection of nats-py; `waiting` are queues that get a None whenever it was lost and is there again."""

    def __init__(self, client: NatsClient) -> None:
        self.nats = client
        self.waiting: set[asyncio.Queue[Any]] = set()
        self._asking: dict[asyncio.Timeout, str] = {}  # the bus itself, what

    def note_reconnect(self) -> None:
        """Wake whoever waits for something that may have come meanwhile."""
        for queue in self.waiting:
            queue.put_nowait(None)

    async def ask(self, subject: str, body: bytes, head: Mapping[str, str], *, wait_s: float) -> Msg:
        """One request. Raises TimeoutError, NoRespondersError, MessageTooLarge, and BusUnavailable for everything else that the connection says."""
        check_size(subject, body, head, limit_bytes=self.nats.max_payload)
        try:
            asking = self.nats.request(subject, body, timeout=wait_s, headers=dict(head) or None)
            return await (self._unless_denied(subject, asking) if subject.startswith("$") else asking)
        except nats.errors.NoRespondersError:
            raise
        except nats.errors.TimeoutError as error:
            raise TimeoutError from error
        except nats.errors.Error as error:
            raise BusUnavailable(f"the connection to the bus failed: {error}") from error

    async def _unless_denied(self, subject: str, asking: Coroutine[None, None, Msg]) -> Msg:
        """An answer of the bus itself. It says nothing to whoever may not ask, but an error of the whole connection, which ends the waiting."""
        scope = asyncio.timeout(None)
        self._asking[scope] = subject
        try:
            async with scope:
                return await asking
        except TimeoutError:
            if scope.expired():
                raise Denied(f"{subject} is not for this user of the bus to ask") from None
            raise
        finally:
            del self._asking[scope]

    def note_error(self, said: str) -> None:
        """Give up what the server says that this user may not ask."""
        if (denied := _DENIED.search(said)) is not None:
            for scope, subject in self._asking.items():
                if subject == denied[1]:
                    scope.reschedule(0)

    async def store(self, subject: str, body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
        """(the stream that has it, whether it had it before). Raises NoSuchFunction where none takes the subject, BusUnavailable."""
        try:
            message = await self.ask(subject, body, headers, wait_s=CONNECT_S + 2)
        except nats.errors.NoRespondersError:
            raise NoSuchFunction(
                f"nothing takes {subject}: no function has a trigger for it; `faas functions` lists what there is, "
                "and a node finds a new one when it starts"
            ) from None
        except TimeoutError as error:
            raise BusUnavailable(
                f"{subject} was not acknowledged; it may be stored all the same, so send it again with the same id"
            ) from error
        try:
            ack = msgspec.json.decode(message.data, type=_Ack)
        except msgspec.DecodeError as error:
            raise BusUnavailable(f"{subject} was answered by something that is no stream") from error
        if ack.error is not None and ack.error.get("err_code") == STREAM_FULL:
            raise BusUnavailable(
                f"{subject} was refused, and is not stored: its stream is full ({ack.error.get('description')}); send it again once events "
                "have been settled, and see what `faas doctor` says of events and disk"
            )
        if ack.error is not None:
            raise BusUnavailable(f"{subject} was refused: {ack.error.get('description', ack.error)}")
        return ack.stream, ack.duplicate

    async def nodes(self) -> list[str]:
        """The names of the nodes that answer for the service; at once where one does, else after QUESTION_S."""
        names: dict[str, None] = {}
        inbox = self.nats.new_inbox()
        first = asyncio.Event()

        async def take(message: Msg) -> None:
            if message.data:
                names[msgspec.json.decode(message.data, type=_Info).metadata.node] = None
            first.set()

        try:
            subscription = await self.nats.subscribe(inbox, cb=take)
            try:
                await self.nats.publish(f"$SRV.PING.{subjects.SERVICE}", b"", reply=inbox)
                with suppress(TimeoutError):
                    async with asyncio.timeout(QUESTION_S):
                        await first.wait()
                if names:
                    await asyncio.sleep(PAUSE_S)  # others answer as fast; who does not is not a node that works
            finally:
                await subscription.unsubscribe()
        except nats.errors.Error as error:
            raise BusUnavailable(f"the connection to the bus failed: {error}") from error
        if not names:
            raise BusUnavailable("no node answers on this bus; start one with `faas up`")
        return list(names)


@asynccontextmanager
async def open_connection(url: str | None, *, state: Path, nkey: Path | None = None) -> AsyncIterator[Connection]:
    """To the bus at `url`, else at FAAS_NATS, else to the node whose state folder this is. Raises ConfigInvalid, BusUnavailable.

    `nkey` is a seed file, else FAAS_NKEY is; with one, what it is answered comes to inboxes that nobody else may listen on.
    """
    address, seed = address_of(url, state), seed_of(nkey)
    said: list[str] = []

    async def note(error: Exception) -> None:
        """Total, as nats-py wants it. Once connected, errors come back from the calls that they concern."""
        said[:] = [str(error) or type(error).__name__]
        connection.note_error(said[0])

    async def note_reconnect() -> None:
        connection.note_reconnect()

    client = NatsClient()
    connection = Connection(client)
    try:
        async with asyncio.timeout(CONNECT_S + 2):  # max_reconnect_attempts: nats-py counts those of a first connection too
            await client.connect(
                address.split(","),
                connect_timeout=int(CONNECT_S),
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                error_cb=note,
                reconnected_cb=note_reconnect,
                nkeys_seed_str=seed or None,
                inbox_prefix=inbox_of(seed) if seed else "_INBOX",
            )
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):  # the last: of a client that got no further than the URL
            async with asyncio.timeout(1):
                await client.close()
        why = said[0] if said else str(error) or type(error).__name__
        hint = hint_of(url, state, why)
        raise BusUnavailable(f"no NATS at {address.rpartition('@')[2]}: {why.removeprefix('nats: ').strip(chr(39))}; {hint}") from error
    client.options |= {"max_reconnect_attempts": 60, "reconnect_time_wait": 1}
    try:
        yield connection
    finally:
        with suppress(nats.errors.Error, OSError):
            await client.close()


def address_of(url: str | None, state: Path) -> str:
    """The bus that is meant: the one given, else FAAS_NATS, else that of the node on this state folder. Raises ConfigInvalid."""
    return url or os.environ.get("FAAS_NATS") or _from_state(state)


def hint_of(url: str | None, state: Path, said: str) -> str:
    """Why nobody may answer at `address_of`, where this is what was said, and what to type."""
    if "authorization violation" in said.lower():
        return "show it who you are: --nkey FILE or FAAS_NKEY, or a token in the URL"
    given = url or os.environ.get("FAAS_NATS")
    return "is it running?" if given else f"the node of {state} was killed, or its machine stopped; start it with `faas up`"


def _from_state(state: Path) -> str:
    try:
        return msgspec.json.decode((state / "node.json").read_bytes(), type=_NodeFile).nats
    except (OSError, msgspec.DecodeError):
        raise ConfigInvalid(f"no node runs on the state folder {state}; start one with `faas up`, or give --nats URL") from None
