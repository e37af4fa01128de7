"""Invocation ids. Pure: the same event for the same function has the same id on any node, at any time; so has the same idempotency key."""

import base64
import hashlib
import os

from faas.model import Control, Event

KEY_CHARACTERS = 255
_LENGTH = 26
_DIGEST_CHARACTERS = 43
_DIGEST_BYTES = 20  # the whole groups of five that 26 characters come from


def invocation_id(tenant: str, function: str, *, source: str, event_id: str) -> str:
    """The first 26 characters of the lower-case base32 of SHA-256 over the four, UTF-8, joined by a zero byte; `source` may be empty."""
    digest = hashlib.sha256("\0".join((tenant, function, source, event_id)).encode()).digest()
    return base64.b32encode(digest[:_DIGEST_BYTES])[:_LENGTH].lower().decode()


def keyed_invocation_id(tenant: str, function: str, key: str) -> str:
    """The id that an idempotency key gives: that of an event with this id and no source, which no stored event can have."""
    return invocation_id(tenant, function, source="", event_id=key)


def id_of(tenant: str, function: str, event: Event, *, control: Control) -> str:
    """The id of a stored event for a function: by its key where it has one, else by its source and id."""
    if control.key:
        return keyed_invocation_id(tenant, function, control.key)
    return invocation_id(tenant, function, source=event.source, event_id=event.id)


def payload_digest(event: Event) -> str:
    """What tells one payload from another: SHA-256 in URL-safe base64 without padding, as the name of an object ends where the payload is one."""
    if event.dataref:
        return event.dataref.rpartition(".")[2][-_DIGEST_CHARACTERS:]
    return base64.urlsafe_b64encode(hashlib.sha256(event.data).digest()).decode().rstrip("=")


def key_problem(text: str) -> str | None:
    """Why this is no idempotency key, in words, or None."""
    if text and text.isascii() and text.isprintable() and text == text.strip() and len(text) <= KEY_CHARACTERS:
        return None
    return f"{text[:40]!r} is no key; it has 1 to {KEY_CHARACTERS} printable ASCII characters, and no space at its ends"


_TO_BASE32 = str.maketrans("0189", "ghij")  # hex digits that base32 does not have


def random_invocation_id() -> str:
    """An id of that form for an invocation that nothing stores: 104 random bits, so that none is ever the same."""
    return os.urandom(_LENGTH // 2).hex().translate(_TO_BASE32)
