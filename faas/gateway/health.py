"""`/healthz`, `/readyz` and `/metrics`: whether the node lives, what it still waits for, what it counts. Knows nothing else of the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from faas.gateway.problems import problem
from faas.gateway.routes import Call, Route

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def health_routes(*, ready: Callable[[], list[str]], absent: Callable[[], str], metrics: Callable[[], Awaitable[bytes]]) -> list[Route]:
    """The routes that answer from the first moment. `ready` names what is missing; nothing means ready.

    `absent` says what is away and not needed, "" where nothing is. `metrics` is the text of one scrape, b"" before there is any.
    """

    async def healthz(call: Call) -> web.Response:
        return _json({"status": "ok"})

    async def readyz(call: Call) -> web.Response:
        missing = ready()
        if missing:
            return problem(503, "not_ready", f"waiting for: {', '.join(missing)}")
        return _json({"status": "ready", **({"detail": away} if (away := absent()) else {})})

    async def scrape(call: Call) -> web.Response:
        text = await metrics()
        if not text:
            return problem(503, "not_ready", f"waiting for: {', '.join(ready())}")
        return web.Response(body=text, headers={"Content-Type": EXPOSITION})

    return [
        Route("GET", "/healthz", healthz, scope="", always=True),
        Route("GET", "/readyz", readyz, scope="", always=True),
        Route("GET", "/metrics", scrape, scope="", always=True),
    ]


def _json(document: dict[str, str]) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), headers={"Content-Type": "application/json"})
