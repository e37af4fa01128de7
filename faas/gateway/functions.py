"""`GET /functions`, `GET /openapi.json`, `GET /usage`: what there is to call, as its caller may see it. Knows no bus; what a node serves is told to it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from faas.errors import NoSuchFunction
from faas.gateway.openapi import Described, document
from faas.gateway.problems import Refusal
from faas.gateway.routes import Call, Route
from faas.listed import as_json
from faas.model import FunctionReport, FunctionVersion
from faas.security.tokens import Principal

OPENAPI_TYPE = "application/json"
"""What generators of clients ask for; OpenAPI 3.1 has no media type of its own that they know."""


class Functions:
    """`reports` are those of all functions in full, `served` a function as this node serves it. With `tenants` callers need a token."""

    def __init__(
        self, reports: Callable[[], list[FunctionReport]], served: Callable[[tuple[str, str]], FunctionVersion | None], *, tenants: bool
    ) -> None:
        self._reports, self._served, self._tenants = reports, served, tenants

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/functions", self.overview, scope="read"),
            Route("GET", "/functions/{tenant}/{function}", self.show, scope="read"),
            Route("GET", "/openapi.json", self.openapi, scope="read"),
            Route("GET", "/usage", self.usage, scope="read"),
        ]

    async def overview(self, call: Call) -> web.StreamResponse:
        """Those of the caller's tenant, as `faas functions --json`."""
        return _json([as_json(report, in_full=False) for report in self._of(call.principal)])

    async def show(self, call: Call) -> web.StreamResponse:
        """One in full, as `faas functions NAME --json` has it."""
        key = (call.tenant(), call.name("function"))
        for report in self._of(call.principal):
            if (report.tenant, report.name) == key:
                return _json(as_json(report, in_full=True))
        raise NoSuchFunction(f"no function {key[1]} of tenant {key[0]}; GET /functions lists what there is")

    async def openapi(self, call: Call) -> web.StreamResponse:
        """The document of all that the caller may call."""
        described = [
            Described(report, function.example)
            for report in self._of(call.principal)
            if (function := self._served((report.tenant, report.name))) is not None
        ]
        return web.Response(body=msgspec.json.encode(document(described, secured=self._tenants)), headers={"Content-Type": OPENAPI_TYPE})

    async def usage(self, call: Call) -> web.StreamResponse:
        raise Refusal(501, "not_supported_yet", "GET /usage is not supported yet; the stream FAAS_USAGE holds the usage records")

    def _of(self, principal: Principal) -> list[FunctionReport]:
        return [report for report in self._reports() if principal.speaks_for(report.tenant)]


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), headers={"Content-Type": "application/json"})
