"""Watches the disk below the embedded server: refuses events while there is still room to settle what was accepted, and heals what a full disk broke.

A stream on a full disk lets publishes time out without a word, and goes on so after there is space again, until the server is
restarted (measured with 2.15.1). So FAAS_EVENTS is closed before, which publishers are told at once; and a server
whose disk was full is restarted once it no longer is. Knows the server and one stream, and nothing of what is in it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from faas import subjects
from faas.bus.connection import ApiError, Bus
from faas.bus.server import EmbeddedServer
from faas.errors import BusUnavailable
from faas.units import format_size

log = structlog.get_logger()

LOOK_S = 1.0
LOW_BYTES = 32 * 2**20
"""Below it no more events are taken: room for the outcomes of those that are there, and for a few seconds of somebody else's writing."""
BACK_BYTES = 48 * 2**20
"""From here on they are taken again: apart, so that a disk at the edge does not flap."""
FULL_BYTES = 2 * 2**20
"""Below it some write will have failed between two looks; a block of a stream is larger than what is left."""
NO_SPACE = (b"no space left on device", b"disk quota exceeded")


class DiskWatch:
    """`open` it; `problem` says what is wrong in a few words, "" while there is space."""

    def __init__(self, server: EmbeddedServer, bus: Bus) -> None:
        self._server, self._bus = server, bus
        self._log = server.folder / "server.log"
        self._read_bytes = _size(self._log)
        self._stuck = False
        self._max_bytes: int | None = None  # of FAAS_EVENTS, as it was before that was closed
        self.problem = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, server: EmbeddedServer, bus: Bus) -> AsyncIterator[DiskWatch]:
        """Look every LOOK_S until the block is left."""
        watch = cls(server, bus)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(watch._run())
            try:
                yield watch
            finally:
                working.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except (ApiError, BusUnavailable, OSError) as error:
                log.warning("disk.not_settled", error=str(error))  # the next look tries again

    async def look(self) -> None:
        """One look, and what follows from it. Raises ApiError, BusUnavailable, OSError."""
        free, failed = await asyncio.to_thread(self._measure)
        if (failed or free < FULL_BYTES) and not self._stuck:
            self._stuck = True
            log.error("disk.full", folder=str(self._server.folder), free_bytes=free, until="there is space: then the server is restarted")
        if free < LOW_BYTES:
            if not self.problem:
                log.error("disk.low", folder=str(self._server.folder), free_bytes=free, events="refused")
            try:
                if not self._stuck or self._max_bytes is None:
                    await self._close()
            finally:  # only now: who reads that there is no space finds events refused
                self.problem = f"space on the disk of {self._server.folder} ({format_size(free - free % 2**10)} left)"
        elif free >= BACK_BYTES and (self.problem or self._stuck):
            if self._stuck:
                await self._server.restart("its disk was full")
                self._read_bytes, self._stuck = _size(self._log), False
                await self._bus.fence()
            await self._reopen()
            log.info("disk.recovered", free_bytes=free)
            self.problem = ""

    def _measure(self) -> tuple[int, bool]:
        """(free bytes, whether the server has said since the last look that a write failed for want of space)."""
        size = _size(self._log)
        said = b""
        if size != self._read_bytes:
            with suppress(OSError), self._log.open("rb") as file:
                file.seek(self._read_bytes if size > self._read_bytes else 0)  # smaller: it was rotated
                said = file.read(2**20).lower()
            self._read_bytes = size
        return shutil.disk_usage(self._server.folder).free, any(words in said for words in NO_SPACE)

    async def _close(self) -> None:
        """Have FAAS_EVENTS refuse what comes, as a full stream does. With `discard: new` a bound below what it holds drops nothing of it."""
        whole = await self._info()
        config, held = whole["config"], max(1, int(whole["state"]["bytes"]))
        if self._max_bytes is None:
            self._max_bytes = config["max_bytes"]
        if config["max_bytes"] != held:
            await self._update({**config, "max_bytes": held})

    async def _reopen(self) -> None:
        if self._max_bytes is not None:
            await self._update({**(await self._info())["config"], "max_bytes": self._max_bytes})
            self._max_bytes = None

    async def _info(self) -> Any:
        return await self._bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict)

    async def _update(self, config: object) -> None:
        await self._bus.api(f"STREAM.UPDATE.{subjects.EVENTS}", config, dict)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
