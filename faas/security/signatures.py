"""Whether a webhook was sent by who knows its secret, as each sender signs. Pure: knows no server, no clock, and no place where secrets lie.

Everything is checked against the body as it came, byte for byte, before anybody reads it, and compared in constant time. Sources: Standard Webhooks 1.0, whose own library signs here; GitHub, "Validating webhook
deliveries"; Stripe, "Verify webhook signatures manually"; Slack, "Verifying requests from Slack".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from msgspec import Struct
from standardwebhooks import Webhook

from faas.triggers import Verify

TOLERANCE_S = 300
"""How far a signed time may be from ours, either way; what Standard Webhooks, Stripe and Slack name."""
STRONG_BYTES = 24
"""A shorter secret is spoken of at start; what Standard Webhooks asks for at least."""
SIGNATURES_LIMIT = 16
"""Of one request that are looked at; a sender that rotates its secret sends two."""

BODY_HEADERS = (
    "x-signature-256",
    "x-hub-signature-256",
    "x-signature",
    "x-hub-signature",
    "x-webhook-signature",
    "x-shopify-hmac-sha256",
    "x-gitea-signature",
    "x-line-signature",
    "x-dropbox-signature",
    "x-wc-webhook-signature",
    "linear-signature",
    "sentry-hook-signature",
    "typeform-signature",
)
"""Where `hmac-sha256` looks, in this order: how senders that sign the body alone call it. Whichever is there has to match."""
TOKEN_HEADERS = ("x-gitlab-token", "x-telegram-bot-api-secret-token", "x-webhook-token")
"""Where `token` looks where there is no `Authorization: Bearer`."""

_SECONDS = re.compile(r"[0-9]{1,11}", re.ASCII)
_STALE = f"its time is more than {TOLERANCE_S} s away from the time here"
_WRONG = "its signature does not match"


class SecretUnusable(Exception):
    """A secret cannot be one of its scheme: one sentence, which holds nothing of it."""


class Request(Struct, frozen=True):
    """What came in, and when, in seconds since the epoch. `headers` have names in lower case."""

    headers: Mapping[str, str]
    body: bytes
    now_s: float


def verify(scheme: Verify, request: Request, secrets: Sequence[bytes]) -> str:
    """ "" where one of the secrets signed this and its time is near ours, else why not, in one sentence for its sender.

    Raises SecretUnusable where a secret cannot be one of the scheme: nobody is let in by the others until that is put right.
    """
    if scheme == "none":
        return ""
    if not secrets or not all(secrets):
        raise SecretUnusable("is empty")  # anybody can sign with that
    return _SCHEMES[scheme](request, secrets)


def problem_with(scheme: Verify, secret: bytes) -> str:
    """What is wrong with a secret, or weak in it, as the end of a sentence that holds nothing of it; "" where nothing is."""
    try:
        key = _standard_key(secret) if scheme == "standard" else secret
    except SecretUnusable as error:
        return str(error)
    if len(key) < STRONG_BYTES:
        return f"has {len(key)} bytes; with fewer than {STRONG_BYTES} it may be guessed (openssl rand -base64 32 makes one)"
    return ""


# ---------------------------------------------------------------- the schemes


def _standard(request: Request, secrets: Sequence[bytes]) -> str:
    """webhook-signature: v1,<base64> v1,<base64> ... over id.time.body."""
    keys = [_standard_key(secret) for secret in secrets]
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    if missing := [name for name in names if not request.headers.get(name)]:
        return f"{missing[0]} is missing"
    id, stamp, given = (request.headers[name] for name in names)
    if "." in id or not id.isascii():
        return "webhook-id has a dot, so that what is signed could be read in two ways, or is no plain text"
    if problem := _off(stamp, request.now_s):
        return problem
    try:
        text = request.body.decode()
    except UnicodeDecodeError:
        return "its body is no UTF-8 text, which is all that Standard Webhooks signs"
    at = datetime.fromtimestamp(int(stamp), tz=UTC)
    signatures = [part[3:] for part in given.split(" ") if part.startswith("v1,")]
    made = [Webhook(key).sign(id, at, text)[3:] for key in keys]
    return _matched(map(str.encode, made), map(_bytes, signatures))


def _github(request: Request, secrets: Sequence[bytes]) -> str:
    """X-Hub-Signature-256: sha256=<hex> over the body. It has no time: what keeps a repetition out is the delivery's id."""
    given = request.headers.get("x-hub-signature-256", "")
    if not given:
        return "X-Hub-Signature-256 is missing; set a secret at the webhook's settings on GitHub"
    return _matched((b"sha256=" + _hex(secret, request.body) for secret in secrets), [_bytes(given)])


def _stripe(request: Request, secrets: Sequence[bytes]) -> str:
    """Stripe-Signature: t=<seconds>,v1=<hex>,v1=<hex>,... over time.body; v0 is for tests of Stripe's own."""
    given = request.headers.get("stripe-signature", "")
    if not given:
        return "Stripe-Signature is missing"
    pairs = [part.strip().partition("=") for part in given.split(",")]
    stamps = [value for name, _, value in pairs if name == "t"]
    if len(stamps) != 1:
        return "Stripe-Signature has not exactly one time, t=..."
    if problem := _off(stamps[0], request.now_s):
        return problem
    content = stamps[0].encode() + b"." + request.body
    return _matched((_hex(secret, content) for secret in secrets), [_bytes(value) for name, _, value in pairs if name == "v1"])


def _slack(request: Request, secrets: Sequence[bytes]) -> str:
    """X-Slack-Signature: v0=<hex> over v0:time:body."""
    stamp, given = request.headers.get("x-slack-request-timestamp", ""), request.headers.get("x-slack-signature", "")
    if not stamp or not given:
        return f"{'X-Slack-Signature' if stamp else 'X-Slack-Request-Timestamp'} is missing"
    if problem := _off(stamp, request.now_s):
        return problem
    content = b"v0:" + stamp.encode() + b":" + request.body
    return _matched((b"v0=" + _hex(secret, content) for secret in secrets), [_bytes(given)])


def _hmac_sha256(request: Request, secrets: Sequence[bytes]) -> str:
    """Over the body alone, in hex or base64, with or without sha256= in front."""
    given = next((request.headers[name] for name in BODY_HEADERS if request.headers.get(name)), "")
    if not given:
        return "a signature is missing; send X-Signature-256: sha256=<hex of HMAC-SHA-256 over the body>"
    return _matched((hmac.digest(secret, request.body, "sha256") for secret in secrets), [_digest(given)])


def _token(request: Request, secrets: Sequence[bytes]) -> str:
    """The secret itself: Authorization: Bearer <secret>, or a header of a known sender."""
    kind, _, bearer = request.headers.get("authorization", "").partition(" ")
    given = (
        bearer.strip()
        if kind.lower() == "bearer"
        else next((request.headers[name] for name in TOKEN_HEADERS if request.headers.get(name)), "")
    )
    if not given:
        return "a token is missing; send Authorization: Bearer <token>"
    # By digests: to compare two of unlike length tells how long the secret is.
    wrong = _matched((hashlib.sha256(secret).digest() for secret in secrets), [hashlib.sha256(_bytes(given)).digest()])
    return "its token does not match" if wrong else ""


_SCHEMES: Mapping[Verify, Callable[[Request, Sequence[bytes]], str]] = {
    "standard": _standard,
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "hmac-sha256": _hmac_sha256,
    "token": _token,
}

# ---------------------------------------------------------------- what they are made of


def _matched(made: Iterable[bytes], given: Sequence[bytes] | Iterable[bytes]) -> str:
    """Whether any that was made is any that was given. Every pair is compared, whatever came out of those before."""
    found, offered = False, list(given)[:SIGNATURES_LIMIT]
    for own in made:
        for other in offered:
            found |= hmac.compare_digest(own, other)
    return "" if found else _WRONG


def _off(stamp: str, now_s: float) -> str:
    if not _SECONDS.fullmatch(stamp):
        return "its time is no whole number of seconds"
    return "" if abs(now_s - int(stamp)) <= TOLERANCE_S else _STALE


def _hex(secret: bytes, content: bytes) -> bytes:
    return hmac.digest(secret, content, "sha256").hex().encode()


def _bytes(text: str) -> bytes:
    """What a header held: servers decode what is no UTF-8 to surrogates."""
    return text.encode("utf-8", "surrogateescape")


def _digest(given: str) -> bytes:
    """A signature in hex or base64 as bytes, b"" where it is neither."""
    text = given.strip().removeprefix("sha256=")
    try:
        return bytes.fromhex(text) if len(text) == 64 else base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _standard_key(secret: bytes) -> bytes:
    text = secret.strip().removeprefix(b"whsec_")
    try:
        key = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise SecretUnusable("is no secret of Standard Webhooks, which is whsec_ and base64")
    return key
