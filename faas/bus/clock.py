"""The bus's clock beside this machine's: what time it is for whoever compares with moments that the bus wrote, and how far the two are apart.

The age of an event, a deadline and the moment of a retry are told by the bus's clock, carried on by this node's monotonic one, so a wall clock that is wrong or
set by hours expires nothing and delays nothing. Times in records and logs are the machine's own: `problem` says by how much they are wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec
import nats.errors
import structlog
from msgspec import Struct
from nats.aio.client import Client

from faas.bus.connection import Bus
from faas.errors import BusUnavailable

log = structlog.get_logger()

LOOK_S = 30.0
SKEW_S = 2.0
"""From here on it is said: machines whose clocks are kept differ by milliseconds."""
ANSWER_S = 1.0
"""An answer that takes longer tells no time: half of what it took is how far the figure may be off."""
QUESTION = "$SYS.REQ.USER.INFO"
"""Answered by the server itself to any user, without a stream."""


class _Server(Struct, frozen=True):
    time: datetime


class _Answer(Struct, frozen=True):
    server: _Server


def _epoch_of(answer: bytes, asked_monotonic: float, answered_monotonic: float) -> float:
    """The moment at which the monotonic clock was 0, by the server's clock, in seconds since the epoch. Raises msgspec.DecodeError."""
    said = msgspec.json.decode(answer, type=_Answer).server.time
    return said.timestamp() - (asked_monotonic + answered_monotonic) / 2


def problem(bus: Bus) -> str:
    """That this machine's clock is wrong, in words; "" where it is not, or the bus does not tell its own."""
    return in_words(time.time() - bus.now())


def in_words(skew_s: float) -> str:
    """`skew_s` is how far the machine is ahead."""
    if abs(skew_s) <= SKEW_S:
        return ""
    return f"the clock of this machine is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the bus's; times in records and logs are wrong by that"


async def skew_s(client: Client) -> float | None:
    """How far this machine's clock is ahead of the server's, for whoever only asks once; None where that is not told."""
    asked = time.monotonic()
    try:
        answer = await client.request(QUESTION, b"", timeout=ANSWER_S)
        return time.time() - time.monotonic() - _epoch_of(answer.data, asked, time.monotonic())
    except (nats.errors.Error, msgspec.DecodeError):
        return None


class ClockWatch:
    """`open` it, and `bus.now` is the bus's time."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._epoch_s: float | None = None
        self._said = ""
        self._silent = False

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus) -> AsyncIterator[ClockWatch]:
        """Compare now, and every LOOK_S until the block is left. A bus that does not tell its time leaves this machine's in force."""
        watch = cls(bus)
        await watch.look()
        bus.now = watch.now
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(watch._run())
            try:
                yield watch
            finally:
                looking.cancel()

    def now(self) -> float:
        """Seconds since the epoch by the bus's clock; by this machine's as long as the bus has not told its own."""
        return time.time() if self._epoch_s is None else self._epoch_s + time.monotonic()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Ask the server once; say it where the clocks have come apart or together."""
        asked = time.monotonic()
        try:
            answer = await self._bus.request(QUESTION, b"", timeout_s=ANSWER_S)
            self._epoch_s = _epoch_of(answer.data, asked, time.monotonic())
        except (BusUnavailable, msgspec.DecodeError) as error:
            if not self._silent:
                log.info("clock.not_compared", error=str(error))
            self._silent = True
            return
        self._silent = False
        ahead_s = time.time() - self.now()
        said = in_words(ahead_s)
        if said and not self._said:
            log.warning("clock.skewed", ahead_s=round(ahead_s, 3), problem=said)
        elif self._said and not said:
            log.info("clock.agrees", ahead_s=round(ahead_s, 3))
        self._said = said
