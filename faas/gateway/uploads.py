"""Bodies of requests: read within bounds of size, time and memory, and put where the bus takes them from. Knows no route and no event.

What the bus carries itself stays in memory; anything larger goes through an unlinked file into the bucket FAAS_PAYLOADS, so
that no number of uploads fills the node's memory.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from faas.bus.payloads import Payloads
from faas.config import HttpConfig
from faas.gateway.bodies import Room, parts_of
from faas.gateway.problems import Refusal
from faas.objects import READ_ONCE, name_in, part_of_file

HELD_BYTES = 256 * 2**20
"""Of all bodies in memory; beyond, whoever comes is told to come again."""
SPOOLED_AT_ONCE = 16
"""Bodies in files: so many times `max_body` of disk."""
RESERVE_BYTES = 64 * 2**20
"""Of the disk, for whoever settles what was accepted (`bus/disk.py`): a body that is only coming in is refused before."""
WRITE_BYTES = 2**20
"""Gathered before it is written: a trip to a thread for each 64 KiB of the network costs more than the write."""


@dataclass(slots=True)
class Body:
    """What a request brought: in `data`, or in `file` where the bus does not carry it. `close` gives back what it holds before its block ends."""

    data: bytes
    size: int
    file: BinaryIO | None
    close: Callable[[], None]


class Bodies:
    """One for a gateway. `inline_limit_bytes` is what the bus carries itself; `folder` is where files may be made."""

    def __init__(self, config: HttpConfig, payloads: Payloads, *, folder: Path) -> None:
        self._config, self._payloads, self._folder = config, payloads, folder
        self._room = Room(HELD_BYTES)
        self._files = 0

    @asynccontextmanager
    async def of(self, request: web.BaseRequest, *, inline_limit_bytes: int) -> AsyncIterator[Body]:
        """Read the body of a request; its file is gone when the block is left.

        Raises Refusal as `parts_of`, and 503 where others fill memory or disk.
        """
        reading = _Reading(self, request, inline_limit_bytes=inline_limit_bytes)
        try:
            yield await reading.whole(self._config)
        finally:
            reading.close()

    async def put(self, body: Body, *, kept_s: float) -> str:
        """The name under which a body that is in a file can be fetched for so long. Raises StoreRefused, BusUnavailable."""
        assert body.file is not None
        prefix = f"{READ_ONCE}{secrets.token_urlsafe(16)}"
        return await self._payloads.put(part_of_file(body.file.fileno()), body.size, prefix=prefix, kept_s=kept_s)

    async def let_go(self, head: Mapping[str, str]) -> None:
        """Nobody took the event whose body `put` has put into the bucket, if it was large: nobody will ask for that."""
        if (name := name_in(head.get("ce-dataref", ""))) is not None:
            await self._payloads.let_go(name)


class _Reading:
    """One body on its way in, and what it holds."""

    def __init__(self, bodies: Bodies, request: web.BaseRequest, *, inline_limit_bytes: int) -> None:
        self._bodies, self._request, self._inline_limit_bytes = bodies, request, inline_limit_bytes
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._file: BinaryIO | None = None
        self._writing = False

    async def whole(self, config: HttpConfig) -> Body:
        size = 0
        async with aclosing(parts_of(self._request, limit_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)) as parts:
            async for part in parts:
                size += len(part)
                self._hold(part)
                if size > self._inline_limit_bytes and (self._parts_bytes >= WRITE_BYTES or self._file is None):
                    await self._spool()
        if self._file is None:
            return Body(b"".join(self._parts), size, None, self.close)
        await self._spool()
        return Body(b"", size, self._file, self.close)

    def _hold(self, part: bytes) -> None:
        self._bodies._room.take(len(part), own_bytes=self._parts_bytes)
        self._parts.append(part)
        self._parts_bytes += len(part)

    async def _spool(self) -> None:
        """What is held goes into the file."""
        try:
            if self._file is None:
                if self._bodies._files >= SPOOLED_AT_ONCE:
                    raise Refusal(503, "busy", f"{SPOOLED_AT_ONCE} large bodies come in on this node already; ask again")
                self._bodies._files += 1
                try:
                    self._file = await asyncio.to_thread(_new_file, self._bodies._folder)
                except BaseException:
                    self._bodies._files -= 1
                    raise
            parts, self._parts = self._parts, []
            self._writing = True
            await asyncio.to_thread(_write, self._file, parts)
            self._writing = False
        except OSError as error:
            raise Refusal(503, "no_space", f"the body cannot be written to the disk of this node: {error.strerror}") from error
        self._bodies._room.give_back(self._parts_bytes)
        self._parts_bytes = 0

    def close(self) -> None:
        self._bodies._room.give_back(self._parts_bytes)
        self._parts, self._parts_bytes = [], 0
        if self._file is None:
            return
        self._bodies._files -= 1
        if not self._writing:  # else a thread has it still, and closed its descriptor could be another's: it goes with its last reference
            self._file.close()
        self._file = None


def _new_file(folder: Path) -> BinaryIO:
    folder.mkdir(mode=0o700, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _write(file: BinaryIO, parts: list[bytes]) -> None:
    disk = os.fstatvfs(file.fileno())
    if disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[file.write(view) :]
