"""The body of a request as it came, byte for byte, and no more of it than may be: bounded before it is read, while it is read, and in time."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import http_exceptions, web

from faas.gateway.problems import Refusal
from faas.units import format_size

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(request: web.BaseRequest, *, limit_bytes: int, idle_s: float) -> bytes:
    """All of it. `idle_s` is how long no byte of it may come.

    Raises Refusal: 413 where it is larger (by its Content-Length before a byte is read), 415 where it is compressed, 408 where it stops coming,
    400 where it is broken.
    """
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(415, "unsupported_coding", f"Content-Encoding {coding[:40]!r} is not taken; send the body as it is")
    announced = request.content_length
    if announced is not None and announced > limit_bytes:
        raise _too_large(limit_bytes)
    if not request.can_read_body:
        return b""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0
    parts, size_bytes = [], 0
    try:
        while not request.content.at_eof():
            async with asyncio.timeout(idle_s):
                part = await request.content.readany()
            parts.append(part)
            size_bytes += len(part)
            if size_bytes > limit_bytes:
                raise _too_large(limit_bytes)
    except TimeoutError:
        raise Refusal(408, "body_timeout", f"no byte of the body came for {idle_s:g} s", headers={"Connection": "close"}) from None
    except (http_exceptions.HttpProcessingError, aiohttp.ClientPayloadError) as error:
        raise Refusal(400, "bad_request", f"the body is broken: {str(error)[:200]}", headers={"Connection": "close"}) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(413, "payload_too_large", f"the body has more than {format_size(limit_bytes)}, which is the most that is taken here")
