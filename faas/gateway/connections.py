"""Connections of the HTTP server: how many, how long one may be idle, how large a head may be. Knows no request beyond its head.

Uses private parts of aiohttp's connection, which says to nobody whether it waits for a head; `tests/e2e/test_gateway_limits.py`
holds them in place.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from faas.config import HttpConfig
from faas.gateway.problems import problem

HEAD_BYTES = 64 * 2**10
"""Of a whole head: aiohttp bounds each line, and takes a hundred of them."""
LINGER_S = 2.0
"""What is still sent of a body that was refused is read for so long, so that its sender reads why."""
STALLED_S = 60.0
"""A client that takes nothing of an answer for so long is gone, as the kernel has it: aiohttp would wait for it without end."""

_AIOHTTP = logging.getLogger("faas.gateway.aiohttp")
_AIOHTTP.addHandler(logging.NullHandler())
_AIOHTTP.propagate = False  # broken requests are its senders' business, and any stranger can send thousands


class Server(web.Server):
    """aiohttp's server, with bounds, raw bodies, and a handler that ends with its client."""

    def __init__(self, handler: Callable[[web.BaseRequest], object], config: HttpConfig) -> None:
        super().__init__(
            handler,  # type: ignore[arg-type]
            handler_cancellation=True,
            keepalive_timeout=config.keep_alive_s,  # also what a new connection has to send its first head
            max_line_size=config.max_header_bytes,
            max_field_size=config.max_header_bytes,
            auto_decompress=False,
            lingering_time=LINGER_S,
            access_log=None,
            logger=_AIOHTTP,
        )
        self._options = self._kwargs
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = config.max_connections
        if descriptors != resource.RLIM_INFINITY:
            self._limit = max(1, min(self._limit, descriptors // 2))  # the other half is for workers, the bus and files

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Beyond the limit the connection goes that has been idle for longest; where none is, the new one."""
        super().connection_made(handler, transport)
        if len(self._connections) > self._limit:
            idle = (other for other in self._connections if isinstance(other, _Connection) and other.idle)
            gone = min(idle, key=lambda other: other.idle_since, default=handler)
            gone.force_close()


class _Connection(web.RequestHandler):
    """One connection: what is no HTTP is answered by a problem document too."""

    head_bytes = 0
    idle_since = 0.0
    refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.idle_since = self._loop.time()
        stream = transport.get_extra_info("socket")
        if stream is not None:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
        super().connection_made(transport)

    @property
    def idle(self) -> bool:
        """Whether it waits for a head, some of which may have come."""
        return self._waiter is not None and not self._waiter.done() and not self._force_close

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        super().data_received(data)
        if not self.idle:
            self.head_bytes, self.idle_since = 0, self._loop.time()
            return
        self.head_bytes += len(data)
        if self.head_bytes > HEAD_BYTES and self.transport is not None:
            self.refused = True
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.transport.write(f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            self._loop.call_later(LINGER_S, self.force_close)  # at once, it would be lost with what is still coming

    def handle_error(self, request: web.BaseRequest, status: int = 500, *about: BaseException | str | None) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun; there is no other")
        said = next((line for text in reversed(about) for line in str(text or "").splitlines()), HTTPStatus(status).phrase)[:200]
        answer = problem(status, "bad_request" if status == 400 else "http_error", said)
        answer.force_close()
        return answer
