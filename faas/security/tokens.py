"""Who a caller is: the tenant for which it speaks, and what it may do there. Knows no door through which it came."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Scope = Literal["invoke", "read", "admin"]
SCOPES: frozenset[Scope] = frozenset(("invoke", "read", "admin"))


class Principal(Struct, frozen=True, kw_only=True):
    """`tenant` "" speaks for every tenant."""

    tenant: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """`admin` holds the others."""
        return scope in self.scopes or "admin" in self.scopes

    def speaks_for(self, tenant: str) -> bool:
        return not self.tenant or self.tenant == tenant


ANYONE = Principal(tenant="", scopes=SCOPES)
"""Whoever reaches a node that has no tenants: its own machine alone does."""
