"""Bearer tokens: who a caller is, the tenant for which it speaks, and what it may do there. Knows no door through which it came.

A token is 256 random bits, so its SHA-256 is stored as it is: there is nothing to guess that a slow hash would protect. The token itself is
shown once, by `faas token new`, and is nowhere in the node.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from msgspec import Struct

from faas.config import Scope, TenantConfig

SCOPES: frozenset[Scope] = frozenset(("invoke", "read", "admin"))
TOKEN_BYTES = 32
TOKEN_CHARACTERS = 256
"""Of what is presented: nothing of ours is longer, and hashing a megabyte for a stranger is work."""


class Principal(Struct, frozen=True, kw_only=True):
    """`tenant` "" speaks for every tenant. `name` is the token's, for the log and the audit."""

    tenant: str
    scopes: frozenset[Scope]
    name: str = ""

    def may(self, scope: Scope) -> bool:
        """`admin` holds the others."""
        return scope in self.scopes or "admin" in self.scopes

    def speaks_for(self, tenant: str) -> bool:
        return not self.tenant or self.tenant == tenant


ANYONE = Principal(tenant="", scopes=SCOPES)
"""Whoever reaches a node that has no tenants: its own machine alone does."""


@dataclass(slots=True, frozen=True)
class _Known:
    principal: Principal
    expires: date | None


class Tokens:
    """The tokens of all tenants of a configuration."""

    def __init__(self, tenants: Iterable[TenantConfig]) -> None:
        self._known = {
            token.sha256: _Known(Principal(tenant=tenant.name, scopes=frozenset(token.scopes), name=token.name), token.expires)
            for tenant in tenants
            for token in tenant.token
        }

    def __bool__(self) -> bool:
        return bool(self._known)

    def principal(self, token: str, *, today: date) -> Principal | None:
        """Whose token it is; None for one that is unknown or has expired. `today` in UTC.

        The look-up is by the digest of what was presented, so how long it takes says nothing about any token.
        """
        known = self._known.get(digest_of(token)) if len(token) <= TOKEN_CHARACTERS else None
        if known is None or (known.expires is not None and today >= known.expires):
            return None
        return known.principal


def new_token(tenant: str) -> str:
    """A token as it is shown once. It begins with `faas_` and the tenant, so that a scanner for secrets knows it, and people know whose it is."""
    return f"faas_{tenant}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def digest_of(token: str) -> str:
    """What `faas.toml` holds of a token: hex SHA-256 of its UTF-8."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
