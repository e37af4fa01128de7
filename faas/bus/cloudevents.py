"""NATS message <-> event: CloudEvents 1.0 in binary and structured mode, and plain messages. Pure; knows no connection.

Source: CloudEvents 1.0.2, its NATS protocol binding and JSON event format. Header names are compared without case.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, unquote

import msgspec

from faas.bus.messages import encode_head
from faas.identity import key_problem
from faas.model import Control, Event, EventInvalid
from faas.objects import name_in
from faas.subjects import CHUNKS, PAYLOADS
from faas.units import Duration

STRUCTURED = "application/cloudevents"
ID_CHARACTERS = 1024
"""An id goes into the head of the outcome, percent-encoded; what is longer is no id but a payload."""
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_CORE = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:)(\d\d)((?:\.\d+)?(?:Z|[+-]\d\d:\d\d))", re.ASCII)
REPLY_TO_CHARACTERS = 255
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_NO_CONTROL = Control()
_NOTHING: Mapping[str, str] = {}


class _Refused(Exception):
    """One sentence for the sender; turned into a value at the edge of this module."""


def decode(headers: Mapping[str, str] | None, data: bytes, *, source: str, event_id: str) -> tuple[Event, Control] | EventInvalid:
    """The event that a message is. `source` and `event_id` stand in where the message brings no identity of its own."""
    if not headers:
        plain = Event(
            id=event_id, source=source, type="", subject="", time="", datacontenttype="", dataschema="", extensions=_NOTHING, data=data,
            explicit_id=False,
        )  # fmt: skip
        return plain, _NO_CONTROL
    lower = {name.lower(): value for name, value in headers.items()}
    if "" in lower:
        return EventInvalid("the header block cannot be read, or a header has no name")
    content_type = lower.get("content-type", "")
    try:
        if content_type.lower().startswith(STRUCTURED):
            event = _structured(content_type, data)
        elif any(name.startswith("ce-") for name in lower):
            event = _binary(lower, content_type, data)
        else:
            given = lower.get("faas-idempotency-key") or lower.get("nats-msg-id")
            event = Event(
                id=given or event_id, source=source, type="", subject="", time="", datacontenttype=content_type, dataschema="",
                extensions=_traced(lower), data=data, explicit_id=bool(given),
            )  # fmt: skip
        return event, _control(lower, event.extensions)
    except _Refused as refused:
        return EventInvalid(str(refused))


def binary_head(attributes: Mapping[str, str]) -> bytes:
    """The header lines of an event in binary mode; what is not printable ASCII is percent-encoded, empty attributes are left out."""
    return encode_head((f"ce-{name}", quote(value, safe=_SAFE)) for name, value in attributes.items() if value)


def _binary(lower: Mapping[str, str], content_type: str, data: bytes) -> Event:
    attributes = {name[3:]: unquote(value, errors="strict") for name, value in _decodable(lower)}
    attributes.setdefault("datacontenttype", content_type)
    return _event({**_traced(lower), **attributes}, data)


def _decodable(lower: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs = [(name, value) for name, value in lower.items() if name.startswith("ce-")]
    for name, value in pairs:
        try:
            unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise _Refused(f"{name} is not percent-encoded UTF-8") from None
    return pairs


def _structured(content_type: str, data: bytes) -> Event:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != f"{STRUCTURED}+json":
        raise _Refused(f"{kind} is not supported; send application/cloudevents+json, or binary mode")
    try:
        document = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Refused(f"the body is no CloudEvent in JSON format: {error}") from None
    if "data" in document and "data_base64" in document:
        raise _Refused("data and data_base64 exclude each other")
    body = bytes(document.pop("data")) if "data" in document else b""
    packed = document.pop("data_base64", None)
    attributes = {name: _text(name, raw) for name, raw in document.items() if bytes(raw) != b"null"}
    attributes.setdefault("datacontenttype", "application/json")
    if packed is not None:
        try:
            body = base64.b64decode(msgspec.json.decode(packed, type=str), validate=True)
        except (msgspec.DecodeError, ValueError):
            raise _Refused("data_base64 is not base64") from None
    elif body.startswith(b'"') and not _is_json(attributes["datacontenttype"]):
        body = msgspec.json.decode(body, type=str).encode()  # text that the JSON format had to quote
    return _event(attributes, body)


def _text(name: str, raw: msgspec.Raw) -> str:
    try:
        value = msgspec.json.decode(raw, type=bool | int | str)
    except msgspec.DecodeError:
        value = None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) or (value is not None and -(2**31) <= value < 2**31):
        return str(value)
    raise _Refused(f"{name} is neither text nor a boolean nor a whole number of 32 bits")


def _event(attributes: dict[str, str], data: bytes) -> Event:
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise _Refused(f"the CloudEvents attribute {name} is missing or empty")
    if len(attributes["id"]) > ID_CHARACTERS or len(attributes["source"]) > ID_CHARACTERS:
        raise _Refused(f"id and source may have {ID_CHARACTERS} characters each")
    dataref = attributes.pop("dataref", "")
    claimed = name_in(dataref) or ""
    if dataref and not claimed:
        raise _Refused(f"dataref {dataref[:80]!r} is not supported; put the payload into {PAYLOADS}, and name it {PAYLOADS}/<name>")
    if attributes["specversion"] != "1.0":
        raise _Refused(f"specversion {attributes['specversion'][:20]!r} is not supported; send 1.0")
    for name in attributes:
        if not _ATTRIBUTE.fullmatch(name):
            raise _Refused(f"{name[:70]!r} is no attribute name; use a-z and 0-9 only")
    extensions = {name: value for name, value in attributes.items() if name not in _CORE}
    if "traceparent" in extensions and not _TRACEPARENT.fullmatch(extensions["traceparent"]):
        del extensions["traceparent"]  # W3C: an invalid one restarts the trace and fails nothing
    return Event(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        subject=attributes.get("subject", ""),
        time=_time("time", attributes["time"]) if attributes.get("time") else "",
        datacontenttype=attributes.get("datacontenttype", ""),
        dataschema=attributes.get("dataschema", ""),
        extensions=extensions,
        data=data,
        dataref="" if data else claimed,  # with both they are the same, says CloudEvents
    )


def _traced(lower: Mapping[str, str]) -> dict[str, str]:
    """Trace context that came as plain headers."""
    traceparent = lower.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(traceparent):
        return {}
    return {"traceparent": traceparent, **({"tracestate": lower["tracestate"]} if "tracestate" in lower else {})}


def _control(lower: Mapping[str, str], extensions: Mapping[str, str]) -> Control:
    """What the Faas-* headers ask for; `expirytime` of CloudEvents is a deadline too."""
    asked = [name for name in lower if name.startswith("faas-")]
    if not asked and "expirytime" not in extensions:
        return _NO_CONTROL
    deadlines = [_moment("Faas-Deadline", lower["faas-deadline"])] if "faas-deadline" in lower else []
    if "expirytime" in extensions:
        deadlines.append(_moment("expirytime", extensions["expirytime"]))
    return Control(
        timeout_s=_timeout(lower["faas-timeout"]) if "faas-timeout" in lower else None,
        deadline_at=min(deadlines) if deadlines else None,
        reply_to=_reply_to("Faas-Reply-To", lower["faas-reply-to"]) if "faas-reply-to" in lower else "",
        chunk_to=_reply_to("Faas-Chunk-To", lower["faas-chunk-to"], own=CHUNKS) if "faas-chunk-to" in lower else "",
        depth=_depth(lower["faas-depth"]) if "faas-depth" in lower else 0,
        key=_key(lower["faas-idempotency-key"]) if "faas-idempotency-key" in lower else "",
    )


def _key(text: str) -> str:
    if (problem := key_problem(text)) is not None:
        raise _Refused(f"Faas-Idempotency-Key: {problem}")
    return text


def _reply_to(name: str, text: str, *, own: str | None = None) -> str:
    """What a stranger may have published to: no wildcard, nothing of the runtime's or of NATS' own, nothing that breaks a protocol line.

    What begins with `own` is the runtime's, and may be: whoever makes an invocation of it looks whether it is of that.
    """
    tokens = text.split(".")
    plain = text.isprintable() and not any(ch in text for ch in "*> ") and len(text) <= REPLY_TO_CHARACTERS
    if not plain or not all(tokens) or (tokens[0] == "faas" and (own is None or not text.startswith(own))) or text.startswith("$"):
        raise _Refused(f"{name} {text[:80]!r} is no subject that may be published to")
    return text


def _timeout(text: str) -> float:
    try:
        timeout_s = float(Duration.parse(text))
    except ValueError as error:
        raise _Refused(f"Faas-Timeout: {error}") from None
    if timeout_s <= 0:
        raise _Refused("Faas-Timeout: must be above zero")
    return timeout_s


def _depth(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise _Refused(f"Faas-Depth {text[:20]!r} is no whole number")
    return int(text)


def _moment(name: str, text: str) -> float:
    """RFC 3339 -> seconds since the epoch."""
    return datetime.fromisoformat(_time(name, text)).timestamp()


def _time(name: str, text: str) -> str:
    """RFC 3339 in the one form that Python reads: capitals, and a leap second as the second before it."""
    match = _MOMENT.fullmatch(text.upper())
    normal = match[1] + ("59" if match[2] == "60" else match[2]) + match[3] if match else ""
    try:
        datetime.fromisoformat(normal)
    except ValueError:
        raise _Refused(f"{name} {text[:40]!r} is no RFC 3339 time; write it like 2026-11-24T08:00:00Z") from None
    return normal


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("", "application/json", "text/json") or kind.endswith("+json")
