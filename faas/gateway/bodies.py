"""The body of a request as it came, byte for byte, and no more of it than may be: bounded before it is read, while it is read, and in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import aiohttp
from aiohttp import http_exceptions, web

from faas.gateway.problems import Refusal
from faas.units import format_size

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


LEAST_BYTES_PER_S = 16 * 1024
"""A body that comes slower holds its connection on purpose, or over a line on which it never ends."""


async def parts_of(request: web.BaseRequest, *, limit_bytes: int, timeout_s: float) -> AsyncGenerator[bytes, None]:
    """The body as it comes: `timeout_s` for whatever is small, and more for more, at LEAST_BYTES_PER_S.

    Raises Refusal: 413 where it is larger (by its Content-Length before a byte is read), 415 where it is compressed, 408 where it does not come in time,
    417 where its sender expects what is not known, 400 where it is broken.
    """
    for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        codings = [coding.strip().lower() for value in request.headers.getall(name, []) for coding in value.split(",")]
        if strange := next((coding for coding in codings if coding not in ("", plain)), ""):
            raise Refusal(415, "unsupported_coding", f"{name} {strange[:40]!r} is not taken; send the body as it is")
    announced = request.content_length
    if announced is not None and announced > limit_bytes:
        raise _too_large(limit_bytes)
    if not request.can_read_body:
        return
    await _go_on(request)
    size_bytes, began_monotonic = 0, time.monotonic()
    while not request.content.at_eof():
        left_s = began_monotonic + timeout_s + size_bytes / LEAST_BYTES_PER_S - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                part = await request.content.readany()
        except TimeoutError:
            raise Refusal(
                408, "body_timeout", f"the body does not come in time; {timeout_s:g} s are given to it", headers={"Connection": "close"}
            ) from None
        except (http_exceptions.HttpProcessingError, aiohttp.ClientPayloadError, web.RequestPayloadError) as error:
            raise Refusal(400, "bad_request", f"the body is broken: {str(error)[:200]}", headers={"Connection": "close"}) from None
        size_bytes += len(part)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        yield part


SMALL_BYTES = 64 * 2**10
"""Of each body that are not counted: a few slow senders of large ones keep no small one out, and a connection buffers as much anyhow."""


class Room:
    """Memory for the bodies of many requests: beyond `limit_bytes` of all together whoever comes is told to come again, but for a body alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0

    def take(self, size_bytes: int, *, own_bytes: int) -> None:
        """So much more for a body that has `own_bytes` of it. Raises Refusal (503)."""
        if self._held_bytes > own_bytes and self._held_bytes + size_bytes > self._limit_bytes:
            raise Refusal(503, "busy", f"bodies of requests fill {format_size(self._limit_bytes)} on this node; ask again")
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes


@asynccontextmanager
async def body_of(request: web.BaseRequest, room: Room, *, limit_bytes: int, timeout_s: float) -> AsyncIterator[bytes]:
    """All of it, in memory until the block is left. Raises as `parts_of` and `Room.take`."""
    parts: list[bytes] = []
    size_bytes = held_bytes = 0
    try:
        async with aclosing(parts_of(request, limit_bytes=limit_bytes, timeout_s=timeout_s)) as coming:
            async for part in coming:
                size_bytes += len(part)
                if (more_bytes := size_bytes - SMALL_BYTES - held_bytes) > 0:
                    room.take(more_bytes, own_bytes=held_bytes)
                    held_bytes += more_bytes
                parts.append(part)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        yield body
    finally:
        room.give_back(held_bytes)


async def _go_on(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body; only now, after what can be refused without it."""
    expected = request.headers.get("Expect")
    if expected is None:
        return
    if expected.strip().lower() != "100-continue":
        raise Refusal(417, "expectation_failed", f"Expect: {expected[:80]} is not supported")
    if request.version >= (1, 1):
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # of the answer, none of which is out


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(413, "payload_too_large", f"the body has more than {format_size(limit_bytes)}, which is the most that is taken here")
