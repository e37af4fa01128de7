"""A node for the tests of its doors, with a function for each way to be asked, and an HTTP client beside it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from node import SHORT_LEASE, Node, running, write_function

FUNCTIONS = {
    "double": ("import msgspec\nclass In(msgspec.Struct):\n    n: int\ndef handle(event: In, ctx):\n    return {'n2': event.n * 2}\n", ""),
    "raises": ("def handle(event):\n    raise ValueError('no such picture')\n", ""),
    "rejects": ("import faas\ndef handle(event):\n    raise faas.Reject('not a picture')\n", ""),
    "dies": ("import os\ndef handle(event):\n    os._exit(3)\n", "[retry]\nmax_attempts = 1\n"),
    "hangs": ("import time\ndef handle(event):\n    time.sleep(60)\n", '[limits]\ntimeout = "200ms"\n'),
    "whole": (
        "import faas\ndef handle(event: faas.Event):\n    return {'id': event.id, 'source': event.source, 'type': event.type, "
        "'kind': event.datacontenttype, 'extensions': event.extensions}\n",
        "",
    ),
    "back": ("def handle(event: bytes):\n    return event[::-1]\n", ""),
    "waits": (
        "import asyncio, pathlib\nasync def handle(event: str):\n    pathlib.Path(event, 'began').touch()\n    try:\n        await asyncio.sleep(60)\n"
        "    except asyncio.CancelledError:\n        pathlib.Path(event, 'cancelled').touch()\n        raise\n",
        '[limits]\ntimeout = "60s"\n',
    ),
    "tokens": (
        "import time\ndef handle(event: str, ctx):\n    words = event.split()\n    for n, word in enumerate(words):\n"
        "        ctx.progress(n / len(words), word)\n        time.sleep(0.12)\n        yield word\n",
        "",
    ),
    "small": ("def handle(event: bytes):\n    return len(event)\n", '[limits]\npayload = "100KiB"\n'),
    "grows": ("def handle(event):\n    return b'x' * 200_000\n", '[limits]\npayload = "100KiB"\n'),
    "much": (
        "import time\ndef handle(event: int):\n    for n in range(event):\n        time.sleep(0.005)\n        yield 'x' * 100_000\n",
        "",
    ),
    "kinds": ("def handle(event):\n    yield {'n': 1}\n    yield b'\\xff\\x00'\n    yield 'two\\r\\nlines'\n", ""),
}


@dataclass
class Doors:
    """A node, and what speaks HTTP to it."""

    node: Node
    http: aiohttp.ClientSession

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.node.info["http"].removeprefix("http://").rpartition(":")
        return host, int(port)

    async def post(self, path: str, data: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body)."""
        return await self.send("POST", path, data, **headers)

    async def send(self, method: str, path: str, data: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(
            method, path, data=data and io.BytesIO(data), headers=given, skip_auto_headers=["Content-Type"]
        ) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()

    async def state(self, invocation: str) -> dict[str, Any]:
        _, _, body = await self.send("GET", f"/invocations/{invocation}")
        document: dict[str, Any] = json.loads(body)
        return document

    async def until_ended(self, invocation: str, wait_s: float = 8.0) -> dict[str, Any]:
        """Its state document, once it has ended."""
        async with asyncio.timeout(wait_s):
            while (found := await self.state(invocation))["state"] != "ended":
                pass
        return found


@dataclass
class Said:
    """One server-sent event."""

    event: str
    id: str
    data: Any


@dataclass
class Reader:
    """Reads server-sent events from a response; comments are counted."""

    answer: aiohttp.ClientResponse
    comments: int = field(default=0)

    async def __aiter__(self) -> AsyncIterator[Said]:
        lines: dict[str, str] = {}
        async for raw in self.answer.content:
            line = raw.decode().rstrip("\n")
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                lines[name] = value
            elif "data" in lines:
                yield Said(lines["event"], lines["id"], json.loads(lines["data"]))
                lines = {}


@asynccontextmanager
async def doors(root: Path, *options: str, environ: dict[str, str] | None = None) -> AsyncIterator[Doors]:
    """A node with FUNCTIONS."""
    for name, (code, spec) in FUNCTIONS.items():
        write_function(root / "functions", name, code, spec)
    async with running(root / "functions", root / "state", *options, environ={**SHORT_LEASE, **(environ or {})}) as node:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(node.info["http"], connector=connector) as http:
            yield Doors(node, http)


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """(status, code) of a problem document, which says the same status."""
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json", body[:200]
    document = json.loads(body)
    assert document["status"] == status
    return status, document["code"]
