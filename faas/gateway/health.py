"""`/healthz`, `/readyz` and `/metrics`: whether the node lives, what it still waits for, what it counts. Knows nothing else of the node."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from faas.errors import ConfigInvalid

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class HealthServer:
    """A listening server; `url` has the port that was chosen."""

    url: str

    @classmethod
    @asynccontextmanager
    async def open(
        cls, host: str, port: int, *, ready: Callable[[], list[str]], absent: Callable[[], str], metrics: Callable[[], Awaitable[bytes]]
    ) -> AsyncIterator[HealthServer]:
        """Listen until the block is left. `ready` names what is missing; nothing means ready. `absent` says what is away and not needed, "" where nothing is.

        `metrics` is the text of one scrape, b"" before there is any. Raises ConfigInvalid where the port is in use.
        """

        async def healthz(request: web.Request) -> web.Response:
            return web.json_response({"status": "ok"})

        async def readyz(request: web.Request) -> web.Response:
            missing = ready()
            if missing:
                return _problem(503, "not_ready", f"waiting for: {', '.join(missing)}")
            return web.json_response({"status": "ready", **({"detail": away} if (away := absent()) else {})})

        async def scrape(request: web.Request) -> web.Response:
            text = await metrics()
            if not text:
                return _problem(503, "not_ready", f"waiting for: {', '.join(ready())}")
            return web.Response(body=text, headers={"Content-Type": EXPOSITION})

        application = web.Application(middlewares=[_problems])
        application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, shutdown_timeout=1.0)
            try:
                await site.start()
            except OSError as error:
                problem = error.strerror or str(error)
                raise ConfigInvalid(
                    f"--http {host}:{port} cannot be listened on: {problem}; choose another port (0 lets the system choose)"
                ) from error
            chosen = runner.addresses[0][1]
            yield cls(f"http://{f'[{host}]' if ':' in host else host}:{chosen}")
        finally:
            await runner.cleanup()


@web.middleware
async def _problems(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Every error is a problem document, those of aiohttp included."""
    try:
        return await handler(request)  # type: ignore[misc,no-any-return]
    except web.HTTPException as error:
        return _problem(error.status, "not_found" if error.status == 404 else "http_error", error.reason)


def _problem(status: int, code: str, detail: str) -> web.Response:
    body = json.dumps({"title": code.replace("_", " "), "status": status, "code": code, "detail": detail})
    return web.Response(status=status, text=body, content_type="application/problem+json")
