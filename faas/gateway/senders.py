"""What a delivery of a webhook says of itself: its id, what kind of event it is, what it is about, and what its sender wants to hear. Pure.

Only asked once the signature is right. What a sender does not sign (GitHub's headers; the body is signed alone) is taken as it says.
Sources: the senders' own documentation; the types of GitHub's events are those of CloudEvents' adapter for GitHub.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from faas.triggers import Verify

ID_CHARACTERS = 255
"""Of a delivery's id: it goes into a header of the bus, encoded, and into the answer."""
TYPE_CHARACTERS = 255
PLAIN_TYPE = "faas.webhook"
"""Of an event whose sender does not say which kind it is."""

FORM = "application/x-www-form-urlencoded"
ACCEPTED: Mapping[Verify, tuple[str, ...]] = {
    "github": ("application/json", FORM),
    "stripe": ("application/json",),
    "slack": ("application/json", FORM),
}
"""The content types that a sender has; the others send what they like."""

ID_HEADERS = (
    "webhook-id",
    "idempotency-key",
    "x-delivery-id",
    "x-event-id",
    "x-github-delivery",
    "x-gitea-delivery",
    "x-shopify-webhook-id",
    "x-wc-webhook-delivery-id",
    "x-request-uuid",
    "linear-delivery",
)
"""Where senders without a scheme of their own put what is the same each time they try to deliver one event."""
TYPE_HEADERS = (
    "x-event-type",
    "x-event-key",
    "x-github-event",
    "x-gitea-event",
    "x-gitlab-event",
    "x-shopify-topic",
    "x-wc-webhook-topic",
    "sentry-hook-resource",
    "linear-event",
)

_ID = re.compile(rf"[\x21-\x7e]{{1,{ID_CHARACTERS}}}")
_CHALLENGE = re.compile(r"[\x21-\x7e]{1,1024}")

Headers = Mapping[str, str]
T = TypeVar("T")


class Malformed(Exception):
    """A delivery that its sender signed and that is none all the same: one sentence for whoever sends it."""


class Answer(Struct, frozen=True, kw_only=True):
    """What a sender wants to hear before it sends events; no event comes of it."""

    body: str
    content_type: str


class Delivery(Struct, frozen=True, kw_only=True):
    """One event of a sender. `id` is the same each time that it is delivered; `data` is what a function gets."""

    id: str
    type: str
    data: bytes
    content_type: str
    subject: str = ""  # what it is about: a repository, the id of an invoice
    answer: Answer | None = None


def read(scheme: Verify, headers: Headers, body: bytes) -> Delivery:
    """The delivery that a verified request is. Raises Malformed."""
    content_type = headers.get("content-type", "")
    match scheme:
        case "github":
            delivery = _github(headers, *_unwrapped(body, content_type))
        case "stripe":
            delivery = _stripe(body, content_type)
        case "slack":
            delivery = _slack(headers, *_unwrapped(body, content_type), signed=body)
        case "standard":
            delivery = Delivery(id=headers["webhook-id"], type=_type_of(body, content_type), data=body, content_type=content_type)
        case _:
            id = next((headers[name] for name in ID_HEADERS if headers.get(name)), "") or secrets.token_hex(16)
            kind = next((headers[name] for name in TYPE_HEADERS if headers.get(name)), "") or _type_of(body, content_type)
            delivery = Delivery(id=id, type=kind, data=body, content_type=content_type)
    if not _ID.fullmatch(delivery.id):
        raise Malformed(f"the id of the delivery has to be 1 to {ID_CHARACTERS} printable characters without spaces")
    return msgspec.structs.replace(delivery, type=_bounded(delivery.type) or PLAIN_TYPE, subject=_bounded(delivery.subject))


def media_type(content_type: str) -> str:
    """The content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


# ---------------------------------------------------------------- the senders


class _Repository(Struct):
    full_name: str | None = None


class _GitHubEvent(Struct):
    action: str | None = None
    repository: _Repository | None = None


def _github(headers: Headers, data: bytes, content_type: str) -> Delivery:
    id, kind = headers.get("x-github-delivery", ""), headers.get("x-github-event", "")
    if not id or not kind:
        raise Malformed(f"{'X-GitHub-Event' if id else 'X-GitHub-Delivery'} is missing")
    event = _decoded(data, _GitHubEvent, "GitHub", otherwise=_GitHubEvent())
    return Delivery(
        id=id,
        type=".".join(["com.github", kind, *([event.action] if event.action else [])]),
        subject=event.repository.full_name or "" if event.repository is not None else "",
        data=data,
        content_type=content_type,
        answer=Answer(body=msgspec.json.encode({"event": id, "invocations": []}).decode(), content_type="application/json")
        if kind == "ping"
        else None,
    )


class _StripeObject(Struct):
    id: str | None = None


class _StripeData(Struct):
    object: _StripeObject | None = None


class _StripeEvent(Struct):
    id: str
    type: str
    data: _StripeData | None = None


def _stripe(data: bytes, content_type: str) -> Delivery:
    event = _decoded(data, _StripeEvent, "Stripe")
    about = event.data.object if event.data is not None else None
    subject = about.id or "" if about is not None else ""
    return Delivery(id=event.id, type=f"com.stripe.{event.type}", subject=subject, data=data, content_type=content_type)


class _SlackInner(Struct):
    type: str = ""


class _SlackEvent(Struct):
    type: str = ""
    event_id: str = ""
    challenge: str = ""
    team_id: str | None = None
    event: _SlackInner | None = None


def _slack(headers: Headers, data: bytes, content_type: str, *, signed: bytes) -> Delivery:
    """Events have an id; commands and clicks have none, and are sent once: theirs is the digest of what was signed, its time included."""
    stamp = headers.get("x-slack-request-timestamp", "").encode()
    fallback = hashlib.sha256(stamp + b":" + signed).hexdigest()[:32]
    if media_type(content_type) == FORM:
        return Delivery(id=fallback, type="com.slack.slash_command", data=data, content_type=content_type)
    event = _decoded(data, _SlackEvent, "Slack", otherwise=_SlackEvent())
    challenged = event.type == "url_verification" and _CHALLENGE.fullmatch(event.challenge)
    kind = event.event.type if event.event is not None else ""
    return Delivery(
        id=event.event_id or fallback,
        type=f"com.slack.{kind or event.type or 'event'}",
        subject=event.team_id or "",
        data=data,
        content_type=content_type,
        answer=Answer(body=event.challenge, content_type="text/plain") if challenged else None,
    )


# ---------------------------------------------------------------- reading


class _Typed(Struct):
    type: str = ""


def _type_of(data: bytes, content_type: str) -> str:
    """The `type` of a JSON object, as Standard Webhooks has it; "" where there is none."""
    kind = media_type(content_type)
    if kind != "application/json" and not kind.endswith("+json"):
        return ""
    try:
        return msgspec.json.decode(data, type=_Typed).type
    except (msgspec.DecodeError, RecursionError):
        return ""


def _decoded(data: bytes, kind: type[T], sender: str, *, otherwise: T | None = None) -> T:
    """`otherwise` stands for JSON that has what is looked for in another form than we know: its sender signed it, and may have changed."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        if otherwise is not None:
            return otherwise
        raise Malformed(f"the body is no event of {sender}: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"the body is no JSON: {error}") from None


def _unwrapped(body: bytes, content_type: str) -> tuple[bytes, str]:
    """The JSON of a form whose one field is `payload`, which is how GitHub and Slack send it there; anything else as it is."""
    if media_type(content_type) != FORM:
        return body, content_type
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=64)
    except ValueError:
        raise Malformed("the body is no form, as its content type says") from None
    if len(fields) == 1 and fields[0][0] == "payload":
        return fields[0][1].encode(), "application/json"
    return body, content_type


def _bounded(text: str) -> str:
    return text if len(text) <= TYPE_CHARACTERS and text.isprintable() else ""
