"""What a request asks: the event in its headers (CloudEvents 1.0 over HTTP, binary and structured), and how its sender wants to be answered. Pure.

Headers that go onto the bus are a closed list: nothing that a stranger writes acts there by its name.
Source: CloudEvents 1.0.2, its HTTP protocol binding; RFC 7240 (Prefer); RFC 9651 and the draft of the IETF for Idempotency-Key; RFC 9110, section 12.5.1 (Accept).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aiohttp import web

from faas.bus.cloudevents import decode
from faas.envelope import STRUCTURED, completed
from faas.gateway.problems import Refusal
from faas.identity import key_problem
from faas.model import Control, EventInvalid
from faas.units import format_size

CONTROL = {"faas-timeout": "Faas-Timeout", "faas-deadline": "Faas-Deadline", "faas-reply-to": "Faas-Reply-To", "faas-depth": "Faas-Depth"}
"""What a caller may ask by headers of ours; any other that begins with Faas- is refused."""
KEY = "Faas-Idempotency-Key"
"""What `Idempotency-Key` is on the bus."""
PLAIN = {"content-type": "Content-Type", "traceparent": "traceparent", "tracestate": "tracestate"}
REQUIRED = {"ce-specversion", "ce-id", "ce-source", "ce-type"}
HEAD_BYTES = 16 * 1024
"""Of what goes onto the bus: an outcome repeats some of it, and JetStream takes 65,535 bytes of headers."""
BATCH = "application/cloudevents-batch"
EVENT_STREAM = "text/event-stream"
WAIT_LIMIT_S = 600
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPED = re.compile(r'\\(["\\])')
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(slots=True, frozen=True)
class Preference:
    """RFC 7240: `respond_async`, and how many seconds to wait for the outcome first; None where nothing is said."""

    respond_async: bool = False
    wait_s: int | None = None

    @property
    def applied(self) -> dict[str, str]:
        """What the answer says of it."""
        said = [*(["respond-async"] if self.respond_async else []), *([f"wait={self.wait_s}"] if self.wait_s is not None else [])]
        return {"Preference-Applied": ", ".join(said)} if said else {}


def head_of(request: web.BaseRequest) -> dict[str, str]:
    """The headers of a request that are its event's. Raises Refusal (400, 415, 431)."""
    head: dict[str, str] = {}
    for key, value in request.headers.items():
        name = key.lower()
        if name.startswith("faas-") and name not in CONTROL:
            raise Refusal(
                400, "event_invalid", f"the header {key[:80]} is not one that a request may have; {', '.join(CONTROL.values())} are"
            )
        if name == "idempotency-key":
            name, value = KEY.lower(), key_of(value)
        elif not name.startswith("ce-") and name not in CONTROL and name not in PLAIN:
            continue
        if name in head:
            raise Refusal(400, "event_invalid", f"the header {key[:80]} is there twice")
        if not value.isascii() or not value.replace("\t", "").isprintable():
            raise Refusal(
                400,
                "event_invalid",
                f"the value of the header {key[:80]} is not printable ASCII; CloudEvents attributes are percent-encoded",
            )
        head[name] = value
    size = sum(len(name) + len(value) + 4 for name, value in head.items())
    if size > HEAD_BYTES:
        raise Refusal(431, "headers_too_large", f"the event's headers have {format_size(size)}; {format_size(HEAD_BYTES)} at most")
    if "ce-dataref" in head:
        raise Refusal(400, "event_invalid", "dataref is not supported over HTTP; send the data itself")
    if head.get("content-type", "").lower().startswith(BATCH):
        raise Refusal(415, "batch_not_supported", f"{BATCH} is not supported; send each event in a request of its own")
    whole = {(KEY if name == KEY.lower() else CONTROL.get(name) or PLAIN.get(name) or name): value for name, value in head.items()}
    # With one of them it means to be a CloudEvent, and has to be one; attributes of its own alone are parameters beside a payload.
    return whole if REQUIRED & set(head) or is_structured(whole) else completed(whole)


def key_of(text: str) -> str:
    """The key that a header `Idempotency-Key` has: a string of structured fields, or the same without its quotes. Raises Refusal (400)."""
    quoted = _QUOTED.fullmatch(text.strip())
    key = _ESCAPED.sub(r"\1", quoted[1]) if quoted is not None else text.strip()
    if (problem := key_problem(key)) is not None or (quoted is None and '"' in key):
        raise Refusal(400, "event_invalid", f"Idempotency-Key: {problem or 'a quote stands alone'}")
    return key


def is_structured(head: Mapping[str, str]) -> bool:
    """Whether the body is a CloudEvent with its attributes, and not only its data."""
    return head.get("Content-Type", "").lower().startswith(STRUCTURED)


def control_of(head: Mapping[str, str], body: bytes) -> Control:
    """What its headers ask for. Refuses now what no node could decode: a stored event would have no other answer. Raises Refusal (400)."""
    decoded = decode(head, body, source="http", event_id="http")
    if isinstance(decoded, EventInvalid):
        raise Refusal(400, "event_invalid", decoded.detail)
    if decoded[0].dataref:
        raise Refusal(400, "event_invalid", "dataref is not supported over HTTP; send the data itself")
    return decoded[1]


# ---------------------------------------------------------------- how to answer


def preference_of(request: web.BaseRequest) -> Preference:
    """What `Prefer` asks; what it asks beside that is ignored, as RFC 7240 has it. Raises Refusal (400)."""
    respond_async, wait_s = False, None
    for token in ",".join(request.headers.getall("Prefer", [])).split(","):
        name, _, value = token.partition(";")[0].partition("=")
        match name.strip().lower():
            case "respond-async":
                respond_async = True
            case "wait":
                text = value.strip().strip('"')
                if not _NUMBER.fullmatch(text):
                    raise Refusal(400, "bad_request", f"Prefer: wait={text[:20]} is no whole number of seconds")
                wait_s = min(int(text), WAIT_LIMIT_S) if wait_s is None else wait_s  # the first one holds
    return Preference(respond_async, wait_s)


def accepted(request: web.BaseRequest) -> list[str]:
    """The media types that `Accept` names, those that it wants most first; empty where it is not there."""
    found = list(_ranges(",".join(request.headers.getall("Accept", []))))
    return [kind for _, kind in sorted(found, key=lambda item: -item[0])]


def _ranges(accept: str) -> Iterator[tuple[float, str]]:
    for part in accept.split(","):
        kind, *parameters = [piece.strip().lower() for piece in part.split(";")]
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            continue
        if kind and 0 < quality <= 1:
            yield quality, kind


def wants_stream(request: web.BaseRequest) -> bool:
    return EVENT_STREAM in accepted(request)


def wants_structured(request: web.BaseRequest) -> bool:
    """Whether the result is to come as a CloudEvent with its data inside, before any other form."""
    return any(kind.startswith(STRUCTURED) and not kind.startswith(BATCH) for kind in accepted(request)[:1])
