"""Which handler a path and a method mean: a table that parts of the gateway add to, before and while it listens. Knows no handler.

Its own, since aiohttp freezes a router before it listens, and the gateway listens before its parts exist.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from aiohttp import web

from faas.config import Scope
from faas.gateway.problems import Refusal
from faas.security.tokens import Principal

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")

Handler = Callable[["Call"], Awaitable[web.StreamResponse]]


@dataclass(slots=True, frozen=True)
class Call:
    """A request that found its route. `names` are what the braces of its path stand for, decoded; nothing has checked them yet."""

    request: web.BaseRequest
    principal: Principal
    names: Mapping[str, str]

    def name(self, key: str) -> str:
        """A tenant's, function's or webhook's name of the path: what it is not goes into no subject. Raises Refusal (404)."""
        name = self.names[key]
        if not _NAME.fullmatch(name):
            raise Refusal(404, f"unknown_{key}", f"no {key} {name[:80]!r}: a name begins with a-z, then a-z, 0-9 and -, at most 63")
        return name

    def tenant(self) -> str:
        """The tenant of the path, where the caller speaks for it. Raises Refusal (404, 403)."""
        tenant = self.name("tenant")
        if not self.principal.speaks_for(tenant):
            raise Refusal(403, "forbidden", f"the token is of another tenant than {tenant}")
        return tenant


@dataclass(slots=True, frozen=True)
class Route:
    """`path` is /literal/{name}/...; a name stands for one segment. `scope` is what a caller needs; "" where anybody may, without a token.

    `always`: it answers while the node starts and stops, too.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handle: Handler
    scope: Scope | Literal[""]
    always: bool = False


class Routes:
    """The table. `find` raises Refusal (404, 405)."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[str, Route]] = {}

    def add(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self._known.setdefault(tuple(route.path.split("/")), {})[route.method] = route

    def __iter__(self) -> Iterable[Route]:
        return (route for methods in self._known.values() for route in methods.values())

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """`path` is raw, percent-encoded as it came: a %2F in a name is part of the name."""
        segments = path.split("/")
        for pattern, methods in self._known.items():
            if len(pattern) != len(segments):
                continue
            pairs = list(zip(pattern, segments, strict=True))
            if any(wanted != given for wanted, given in pairs if not wanted.startswith("{")):
                continue
            route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
            if route is None:
                allowed = ", ".join(sorted(methods))
                raise Refusal(405, "method_not_allowed", f"{path[:80]} takes {allowed}", headers={"Allow": allowed})
            return route, {wanted[1:-1]: unquote(given) for wanted, given in pairs if wanted.startswith("{")}
        raise Refusal(404, "not_found", f"there is nothing at {path[:80]}")
