"""What a caller puts around an event, and what it finds around an answer: identity, headers, results. Pure; knows no connection.

The other end of `bus.cloudevents`: both work out the same identity, so that a caller knows the invocation before it exists.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from faas import subjects
from faas.errors import ConfigInvalid, InvocationFailed, MessageTooLarge
from faas.identity import invocation_id, key_problem, keyed_invocation_id

SOURCE = "/faas/client"
TYPE = "faas.event"
STRUCTURED = "application/cloudevents"
ID_CHARACTERS = 1024
HEAD_RESERVE_BYTES = 4096
"""Below the server's limit: it cuts the connection of whoever sends a body that fits with headers that do not."""
_HEADER_NAME = re.compile(r"[!-9;-~]+")  # printable ASCII but the colon
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(slots=True, repr=False)
class Reply:
    """An outcome, or a synchronous answer: headers as received, body as bytes."""

    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        kind, reason = self.headers.get("Content-Type", ""), f", reason={self.reason!r}" if self.reason else ""
        return f"Reply(outcome={self.outcome!r}{reason}, {kind or 'no content type'}, {len(self.body)} bytes)"  # vectors fill a screen

    @property
    def outcome(self) -> str:
        return self.headers.get("Faas-Outcome", "")

    @property
    def reason(self) -> str:
        return self.headers.get("Faas-Reason", "")

    @property
    def result(self) -> Any:
        """The handler's result: a JSON value, text, or bytes. Raises InvocationFailed for any other end."""
        if self.outcome != "succeeded":
            raise self.failure
        return decode_body(self.body, self.headers)

    @property
    def failure(self) -> InvocationFailed:
        """This end as an exception."""
        document: dict[str, Any] = {}
        with suppress(msgspec.DecodeError):
            document = msgspec.json.decode(self.body, type=dict[str, Any])
        detail, traceback = str(document.get("detail", "")), str(document.get("traceback", ""))
        return InvocationFailed(self.outcome, self.reason, detail=detail, traceback=traceback)

    @classmethod
    def undecodable(cls, letter: Mapping[str, str]) -> Reply:
        """What stands in for an outcome where an event could not be decoded: its dead letter."""
        detail = letter.get("Faas-Detail", "the event cannot be decoded; the node's log says why")
        return cls(letter, msgspec.json.encode({"code": letter.get("Faas-Reason", ""), "detail": detail}))


@dataclass(slots=True)
class Ticket:
    """A durable invocation that the bus has accepted. `message_id` is the `Nats-Msg-Id` of its event, which a dead letter repeats."""

    tenant: str
    function: str
    invocation: str
    message_id: str = ""

    @property
    def outcome_subject(self) -> str:
        return subjects.outcome(self.tenant, self.function, self.invocation)


@dataclass(slots=True)
class Published:
    """An event that was published. `waiting` are the durable invocations that it sets off; `at_most_once` functions leave no outcome."""

    id: str
    stream: str
    waiting: list[Ticket] = field(default_factory=list)
    at_most_once: list[str] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Outgoing:
    """An event ready to be stored on one subject: its identity, and headers that say the same."""

    id: str
    source: str
    message_id: str
    headers: Mapping[str, str]
    body: bytes
    key: str = ""

    def ticket(self, tenant: str, function: str) -> Ticket:
        """The invocation that this event is for a function."""
        if self.key:
            return Ticket(tenant, function, keyed_invocation_id(tenant, function, self.key), self.message_id)
        identity = invocation_id(tenant, function, source=self.source, event_id=self.id)
        return Ticket(tenant, function, identity, self.message_id)


def outgoing(subject: str, data: object, headers: Mapping[str, str], *, id: str | None) -> Outgoing:
    """The event that `data` is on `subject`. `id`, and `ce-id` and `ce-source` among the headers, name it; else its idempotency key, else an id of its own.

    Raises ConfigInvalid for headers and identities that could not travel.
    """
    body, head = encode(data, headers)
    lower = {name.lower(): value for name, value in head.items()}
    key = lower.get("faas-idempotency-key", "")
    if key and (problem := key_problem(key)) is not None:
        raise ConfigInvalid(f"idempotency key: {problem}")
    if lower.get("content-type", "").lower().startswith(STRUCTURED):
        if id is not None:
            raise ConfigInvalid("a structured CloudEvent brings its own id in its body; give it no other")
        event_id, source = _inside(body)
        kept = head
    else:
        in_header = unquote(lower.get("ce-id", ""))
        if id and in_header and id != in_header:
            raise ConfigInvalid(f"the event has two ids, {id!r} and {in_header!r} in its header ce-id; give one of them")
        event_id = id or in_header or key or uuid.uuid4().hex
        source = unquote(lower.get("ce-source", "")) or SOURCE
        ours = {"ce-specversion": "1.0", "ce-type": TYPE, "ce-source": quote(source, safe=_SAFE)}
        kept = {name: value for name, value in ours.items() if name not in lower}
        kept |= {name: value for name, value in head.items() if name.lower() != "ce-id"} | {"ce-id": quote(event_id, safe=_SAFE)}
    if len(event_id) > ID_CHARACTERS or len(source) > ID_CHARACTERS:
        raise ConfigInvalid(f"an event's id and source have {ID_CHARACTERS} characters at most")
    # Of this subject: the bus drops what repeats an id within two minutes, and one id may go to several functions.
    message_id = lower.get("nats-msg-id") or f"{subject} {quote(source, safe=_SAFE)} {quote(event_id, safe=_SAFE)}"
    kept = {name: value for name, value in kept.items() if name.lower() != "nats-msg-id"} | {"Nats-Msg-Id": message_id}
    return Outgoing(event_id, source, message_id, kept, body, key)


def _inside(body: bytes) -> tuple[str, str]:
    """(id, source) of a CloudEvent in JSON format."""
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigInvalid(f"the payload is no CloudEvent in JSON format: {error}") from error
    event_id, source = document.get("id"), document.get("source")
    if not isinstance(event_id, str) or not isinstance(source, str) or not event_id or not source:
        raise ConfigInvalid("the payload is no CloudEvent in JSON format: it needs id and source")
    return event_id, source


def in_binary_mode(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """(data, headers) of a structured CloudEvent: the same event with its attributes as `ce-*` headers, so that its data can be elsewhere. Raises ConfigInvalid."""
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        packed, data = document.pop("data_base64", None), bytes(document.pop("data", msgspec.Raw()))
        values = {name: msgspec.json.decode(raw, type=bool | int | str | None) for name, raw in document.items()}
        kind = str(values.get("datacontenttype") or "application/json")
        if packed is not None:
            data = base64.b64decode(msgspec.json.decode(packed, type=str), validate=True)
        elif data.startswith(b'"') and not _is_json(kind):
            data = msgspec.json.decode(data, type=str).encode()  # text that the JSON format had to quote
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ConfigInvalid(f"the payload is no CloudEvent in JSON format: {error}") from error
    values["datacontenttype"] = kind
    attributes = {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items() if value is not None
    }
    kept = {name: value for name, value in headers.items() if name.lower() != "content-type"}
    return data, {**kept, **{f"ce-{name}": quote(value, safe=_SAFE) for name, value in attributes.items()}}


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def decode_body(body: bytes, headers: Mapping[str, str]) -> Any:
    """What a body is by its `Content-Type`: a JSON value, text as str, else bytes."""
    kind = headers.get("Content-Type", "")
    if _is_json(kind):
        return msgspec.json.decode(body)
    return body.decode("utf-8", "replace") if kind.strip().lower().startswith("text/") else body


def encode(data: object, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """(body, headers): bytes as they are, None as nothing, anything else as JSON, said by `Content-Type` where nobody has. Raises ConfigInvalid."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not (value.isprintable() or value.replace("\t", "").isprintable()):
            raise ConfigInvalid(
                f"the header {name!r} cannot travel: a name is printable ASCII without a colon, a value is one line of text"
            )
    if data is None:
        return b"", dict(headers)
    if isinstance(data, bytes):
        return data, dict(headers)
    given = {name.lower() for name in headers}
    body = msgspec.json.encode(data)
    return body, {**({} if "content-type" in given else {"Content-Type": "application/json"}), **headers}


_OF_A_LETTER = ("Faas-Outcome", "Faas-Reason", "Faas-Detail", "Faas-Invocation", "Faas-Chunk-To", "Faas-Body-Bytes", "Faas-Redrive-Of")


def redriven(
    tenant: str, function: str, letter: Mapping[str, str], *, invocation: str, sequence: int, now: float
) -> tuple[str, dict[str, str]]:
    """(new invocation, headers) of a dead letter's event on `faas.due...`: the same event, a new invocation, an age that starts at `now`.

    `sequence` is the letter's place: redriving the same letter twice is one invocation.
    """
    new = invocation_id(tenant, function, source="/faas/redrive", event_id=f"{invocation}.{sequence}")
    kept = {name: value for name, value in letter.items() if not name.startswith("Nats-") and name not in _OF_A_LETTER}
    own = {
        "Faas-Invocation": new,
        "Faas-Event-Id": quote(letter.get("Faas-Msg-Id") or letter.get("Faas-Event-Id", ""), safe=""),
        "Faas-First-Seen": datetime.fromtimestamp(now, UTC).isoformat(),
        "Faas-Redrive-Of": invocation,
        "Nats-Msg-Id": f"redrive.{new}",
    }
    return new, {**kept, **own}


def completed(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a synchronous invocation: where they have CloudEvents attributes, with those that every event has. None make it a plain payload."""
    lower = {name.lower() for name in headers}
    if not any(name.startswith("ce-") for name in lower):
        return dict(headers)
    required = {"ce-specversion": "1.0", "ce-id": uuid.uuid4().hex, "ce-source": SOURCE, "ce-type": TYPE}
    return {**{name: value for name, value in required.items() if name not in lower}, **headers}


def fits(body: bytes, headers: Mapping[str, str], *, limit_bytes: int) -> bool:
    """Whether the server takes them together; `limit_bytes` is its `max_payload`."""
    return _size(body, headers) <= limit_bytes - HEAD_RESERVE_BYTES


def check_size(subject: str, body: bytes, headers: Mapping[str, str], *, limit_bytes: int) -> None:
    """Raises MessageTooLarge for what the server would answer by closing the connection. `limit_bytes` is its `max_payload`."""
    if not fits(body, headers, limit_bytes=limit_bytes):
        raise MessageTooLarge(subject, size_bytes=_size(body, headers), limit_bytes=limit_bytes - HEAD_RESERVE_BYTES)


def _size(body: bytes, headers: Mapping[str, str]) -> int:
    return len(body) + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
