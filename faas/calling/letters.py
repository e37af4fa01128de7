"""Dead letters as operators see them: read, sent again, thrown away. Knows what one looks like, and nothing of who wrote it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.aio.msg import Msg

from faas import subjects
from faas.calling.connection import CONNECT_S, Connection
from faas.calling.flows import messages_of
from faas.envelope import redriven
from faas.errors import BusUnavailable, ConfigInvalid, FaasError

REASONS_THAT_STAY = {"event_invalid": "it cannot be decoded, so it would end the same way; its sender has to send it again"}


class LetterGone(FaasError):
    """A dead letter that was asked for is not there: it was redriven or purged, or its age ran out."""

    code = "unknown_letter"


class Letter(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One dead letter. `sequence` is its place in FAAS_DEAD; `at` RFC 3339; `invocation` the one that ended so; `headers` and `body` the event's own."""

    tenant: str
    function: str
    invocation: str
    outcome: str
    reason: str
    at: str
    event_id: str
    subject: str
    sequence: int
    size_bytes: int
    detail: str = ""
    redrive_of: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""
    body_lost_bytes: int = 0  # of an event that was stored at the limit of the bus


class _Names(Struct, frozen=True):
    total: int = 0
    consumers: tuple[str, ...] | None = ()


class Which(Struct, frozen=True, kw_only=True):
    """Which letters are meant: all of a function, or of every one; those of these invocations; those of a time range, in seconds before now."""

    tenant: str = "default"
    function: str = ""
    invocations: tuple[str, ...] = ()
    since_s: float | None = None
    until_s: float | None = None


async def letters(connection: Connection, which: Which) -> AsyncIterator[Letter]:
    """The letters that are meant, oldest first. Raises BusUnavailable."""
    before = time.time() - which.until_s if which.until_s is not None else float("inf")
    async for message in messages_of(connection, subjects.DEAD, subjects.dead(which.tenant, which.function or "*"), since_s=which.since_s):
        letter = _letter(message)
        if datetime.fromisoformat(letter.at).timestamp() > before:
            return
        if not which.invocations or letter.invocation in which.invocations:
            yield letter


async def redrive(connection: Connection, letter: Letter) -> str:
    """Have the event of a letter run again, as a new invocation whose age starts now; returns its id. The letter goes once that is stored.

    The same letter again, after a crash in between, is the same invocation. Raises ConfigInvalid for a letter that cannot be redriven: it stays.
    """
    if letter.reason in REASONS_THAT_STAY:
        raise ConfigInvalid(f"{letter.invocation}: {REASONS_THAT_STAY[letter.reason]}")
    if letter.body_lost_bytes:
        raise ConfigInvalid(
            f"{letter.invocation}: its body of {letter.body_lost_bytes} bytes was at the limit of the bus and is not in the letter"
        )
    if not await _taken(connection, letter):
        raise ConfigInvalid(
            f"{letter.invocation}: nothing takes events of {letter.function} any more; `faas deploy` it, then redrive the letter"
        )
    invocation, head = redriven(
        letter.tenant, letter.function, letter.headers, invocation=letter.invocation, sequence=letter.sequence, now=time.time()
    )
    await connection.store(subjects.due(letter.tenant, letter.function), letter.body, head)
    await remove(connection, letter)
    return invocation


async def _taken(connection: Connection, letter: Letter) -> bool:
    """Whether a function has a consumer, also one that is withdrawn and may come back: an event that nobody takes would end without a word."""
    offset, total, own = 0, 1, f"{letter.tenant}-{letter.function}-"
    while offset < total:
        try:
            message = await connection.ask(
                f"$JS.API.CONSUMER.NAMES.{subjects.EVENTS}", msgspec.json.encode({"offset": offset}), {}, wait_s=CONNECT_S
            )
        except (TimeoutError, nats.errors.NoRespondersError) as error:
            raise BusUnavailable(f"no stream {subjects.EVENTS} on this bus; is a node running?") from error
        page = msgspec.json.decode(message.data, type=_Names)
        names = page.consumers or ()
        if any(name.rpartition("-")[0] + "-" == own for name in names):
            return True
        offset, total = offset + len(names), page.total if names else 0
    return False


async def remove(connection: Connection, letter: Letter) -> None:
    """Throw a letter away; nothing where it is gone already. Raises BusUnavailable."""
    try:
        await connection.nats.jetstream().delete_msg(subjects.DEAD, letter.sequence)
    except nats.js.errors.NotFoundError:
        return
    except nats.js.errors.APIError as error:
        if error.err_code != NO_MESSAGE:
            raise BusUnavailable(f"the letter {letter.invocation} cannot be removed: {error.description}") from error
    except nats.errors.Error as error:
        raise BusUnavailable(f"the connection to the bus failed: {error}") from error


NO_MESSAGE = 10043


def _letter(message: Msg) -> Letter:
    head = dict(message.headers or {})
    tokens = message.subject.split(".")
    stored = message.metadata
    return Letter(
        tenant=tokens[2],
        function=tokens[3],
        invocation=head.get("Faas-Invocation", ""),
        outcome=head.get("Faas-Outcome", ""),
        reason=head.get("Faas-Reason", ""),
        at=stored.timestamp.astimezone(UTC).isoformat(),
        event_id=head.get("Faas-Event-Id", ""),
        subject=head.get("Faas-Subject", ""),
        sequence=stored.sequence.stream,
        size_bytes=len(message.data),
        detail=head.get("Faas-Detail", ""),
        redrive_of=head.get("Faas-Redrive-Of", ""),
        headers=head,
        body=message.data,
        body_lost_bytes=int(lost) if (lost := head.get("Faas-Body-Bytes", "")).isdecimal() and len(lost) < 18 else 0,
    )


def as_json(letter: Letter, *, whole: bool) -> dict[str, object]:
    """For people and programs: without the event itself unless `whole`; a body that is no text as base64."""
    document = dict(msgspec.to_builtins(letter))
    body = letter.body
    for key in ("body", "headers"):
        document.pop(key, None)
    if whole:
        document["headers"] = letter.headers
        try:
            document["body"] = body.decode()
        except UnicodeDecodeError:
            document["body_base64"] = msgspec.to_builtins(body)
    return document
