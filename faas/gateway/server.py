"""The node's HTTP server: it listens from the first moment, finds the caller of each request, and turns every error into a problem document.

Owns limits of connections and heads, who may do what, and what is answered while the node starts and stops. Knows no route
of its own: parts of the gateway add theirs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from faas.config import HttpConfig
from faas.errors import ConfigInvalid, FaasError
from faas.gateway.connections import Server
from faas.gateway.problems import SERVER, Refusal, problem, problem_of
from faas.gateway.routes import Call, Route, Routes
from faas.security.tokens import ANYONE, Principal

log = structlog.get_logger()

FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")
"""What a proxy or a tunnel adds: then whoever is at the other end of the connection only passes on what somebody else says."""
CLOSING_S = 1.0
"""For answers that are being written when the server closes."""

Identify = Callable[[web.BaseRequest], Principal]
"""Who sends a request. Raises Refusal (401)."""


class Gateway:
    """`open` it before anything else of a node; `add` routes at any time. `url` has the port that was chosen.

    `identify` is who sends a request; until a part of the node that knows tenants sets another, only its own machine may.
    """

    def __init__(self, *, waiting: Callable[[], list[str]]) -> None:
        self._waiting = waiting
        self._routes = Routes()
        self.identify: Identify = own_machine
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str, port: int, config: HttpConfig, *, waiting: Callable[[], list[str]]) -> AsyncIterator[Gateway]:
        """Listen until the block is left. `waiting` names what must be there before anything but the routes for always is answered.

        Raises ConfigInvalid where the port is in use.
        """
        gateway = cls(waiting=waiting)
        server = Server(gateway._handle, config)
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=CLOSING_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                said = error.strerror or str(error)
                raise ConfigInvalid(
                    f"--http {host}:{port} cannot be listened on: {said}; choose another port (0 lets the system choose)"
                ) from error
            chosen = runner.addresses[0][1]
            gateway.url = f"http://{f'[{host}]' if ':' in host else host}:{chosen}"
            yield gateway
        finally:
            await runner.cleanup()

    def add(self, routes: Iterable[Route]) -> None:
        """Serve these too, from now on."""
        self._routes.add(routes)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._answer(request)
            answer.headers.setdefault("Server", SERVER)
            return answer
        except ConnectionError:
            raise  # its client is gone
        except FaasError as error:
            answer = problem_of(error)
        except web.HTTPException as error:
            answer = problem(error.status, "http_error", error.reason)
        except Exception:  # the request boundary: what is wrong with one request ends no other
            log.exception("request.failed", method=request.method, path=request.path[:200])
            answer = problem(500, "error", "this node failed to answer; its log says why")
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer had begun: it ends unfinished, so that nobody takes it for whole")
        answer.headers["Server"] = SERVER
        return answer

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Find the route, the caller, and whether it may; then have it answered."""
        route, names = self._routes.find(request.method, request.rel_url.raw_path)
        principal = ANYONE
        if not route.always:
            if waiting := self._waiting():
                raise Refusal(503, "not_ready", f"waiting for: {', '.join(waiting)}")
            if route.scope:
                principal = self.identify(request)
                if not principal.may(route.scope):
                    raise Refusal(403, "forbidden", f"the token has no scope {route.scope}")
        return await route.handle(Call(request, principal, names))


def own_machine(request: web.BaseRequest) -> Principal:
    """Whoever is on the node's own machine, and no web page that a browser there shows, and nobody behind a proxy there. Raises Refusal (403)."""
    from_here(request)
    host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
    if not is_loopback(_name_in(host)) or (origin is not None and origin != f"http://{host}"):
        raise _no_tenants()
    if any(name in request.headers for name in FORWARDED):
        raise _no_tenants()
    return ANYONE


def _name_in(host: str) -> str:
    """The name or address of a header `Host`, "" where it holds none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def from_here(request: web.BaseRequest) -> None:
    """Let what comes from the node's own machine pass, whatever name it calls the node by. Raises Refusal (403)."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not peer or not is_loopback(str(peer[0])):
        raise _no_tenants()


def _no_tenants() -> Refusal:
    return Refusal(
        403, "no_tenants", "this node has no tenants, so it serves programs of its own machine alone; write [[tenant]] into faas.toml"
    )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
