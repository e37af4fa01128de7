"""Bearer tokens at the HTTP door (RFC 6750): from the header of a request to its principal. Knows no tenant's list and no route."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from faas.gateway.problems import Refusal
from faas.security.tokens import Principal, Tokens


def bearer(tokens: Tokens) -> Callable[[web.BaseRequest], Principal]:
    """Who sends a request, by its token. What is returned raises Refusal (401)."""

    def identify(request: web.BaseRequest) -> Principal:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refusal(
                401,
                "unauthorized",
                "send Authorization: Bearer TOKEN; `faas token new TENANT` makes one",
                headers={"WWW-Authenticate": "Bearer"},
            )
        principal = tokens.principal(token.strip(), today=datetime.now(UTC).date())
        if principal is None:
            raise Refusal(
                401, "invalid_token", "the token is unknown or has expired", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
            )
        return principal

    return identify
