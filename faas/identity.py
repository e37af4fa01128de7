"""Invocation ids. Pure: the same event for the same function has the same id on any node, at any time."""

import base64
import hashlib
import os

_LENGTH = 26
_DIGEST_BYTES = 20  # the whole groups of five that 26 characters come from


def invocation_id(tenant: str, function: str, *, source: str, event_id: str) -> str:
    """The first 26 characters of the lower-case base32 of SHA-256 over the four, UTF-8, joined by a zero byte; `source` may be empty."""
    digest = hashlib.sha256("\0".join((tenant, function, source, event_id)).encode()).digest()
    return base64.b32encode(digest[:_DIGEST_BYTES])[:_LENGTH].lower().decode()


_TO_BASE32 = str.maketrans("0189", "ghij")  # hex digits that base32 does not have


def random_invocation_id() -> str:
    """An id of that form for an invocation that nothing stores: 104 random bits, so that none is ever the same."""
    return os.urandom(_LENGTH // 2).hex().translate(_TO_BASE32)
