"""What functions print and log, on its way to `faas.log...`: gathered for a moment, one message for the lines of one attempt, as JSON lines.

At most once: a line is dropped, and that is said, where the bus is away for longer than WAITING_BYTES last. Knows no worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
import structlog

from faas import subjects
from faas.bus.connection import Bus
from faas.errors import FaasError
from faas.runs import LogLine

log = structlog.get_logger()

GATHER_S = 0.05
"""Lines of one attempt that come within so long go as one message: a line that nobody looks at costs little."""
MESSAGE_BYTES = 64 * 1024
WAITING_BYTES = 8 * 2**20
NO_INVOCATION = "-"
"""In place of an invocation, for a load that no event waits for."""


_encode = msgspec.json.Encoder().encode


def rfc3339(at: float) -> str:
    """Seconds since the epoch as RFC 3339; a moment that no calendar has (a worker's word) as the epoch."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00.000000Z"


class LogLines:
    """`open` it and `add` lines; leaving it sends what waits."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, list[bytes]] = {}  # by subject, in the order of its lines
        self._waiting_bytes = 0
        self._dropped = 0
        self._due: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._closing = False

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus) -> AsyncIterator[LogLines]:
        lines = cls(bus)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(lines._run())
            try:
                yield lines
            finally:
                lines._closing = True
                lines._wake.set()
                await asyncio.wait([sending])  # not cancelled: lines that it has taken would be lost
                if lines._due is not None:
                    lines._due.cancel()

    def add(self, tenant: str, function: str, line: LogLine) -> None:
        """Have one line sent."""
        data = _encode(line) + b"\n"
        if self._waiting_bytes + len(data) > WAITING_BYTES:
            self._dropped += 1
            return
        subject = subjects.log(tenant, function, line.invocation or NO_INVOCATION)
        self._waiting.setdefault(subject, []).append(data)
        self._waiting_bytes += len(data)
        if self._due is None:
            self._due = self._loop.call_later(GATHER_S, self._wake.set)

    async def _run(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            self._due = None
            await self._send()
        await self._send()  # what came while the last was being sent

    async def _send(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("logs.dropped", lines=dropped)
        for subject, lines in waiting.items():
            for body in _messages(lines):
                try:
                    await self._bus.publish(subject, body)
                except FaasError as error:
                    log.warning("logs.dropped", subject=subject, bytes=len(body), error=str(error))


def _messages(lines: list[bytes]) -> list[bytes]:
    """Bodies of some MESSAGE_BYTES; a line is never cut."""
    bodies: list[bytes] = []
    size = 0
    for line in lines:
        if not bodies or size + len(line) > MESSAGE_BYTES:
            bodies.append(b"")
            size = 0
        bodies[-1] += line
        size += len(line)
    return bodies
