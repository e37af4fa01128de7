"""Has the runtime's streams declared again where one of them vanishes while the node runs: deleted by an administrator, or gone with a server's store.

Hears JetStream's advisories, and looks after each reconnect, since an advisory is sent once. Knows which streams there are, and not
how they are declared. Consumers are made again by who pulls from them (`bus/pull.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from msgspec import Struct

from faas import subjects
from faas.bus.connection import ApiError, Bus, Message
from faas.errors import BusUnavailable

log = structlog.get_logger()

STREAMS = (
    subjects.SCHEDULES, subjects.EVENTS, subjects.OUTCOMES, subjects.USAGE, subjects.DEAD, subjects.LOGS, f"KV_{subjects.CANCELLED}",
    f"KV_{subjects.REGISTRY}", f"OBJ_{subjects.BUNDLES}",
    f"OBJ_{subjects.PAYLOADS}",
)  # fmt: skip
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.25, 5.0
DELETED = "$JS.EVENT.ADVISORY.STREAM.DELETED"


class _Anything(Struct):
    pass


class StreamKeeper:
    """`open` it once the streams are declared; it works until the block is left."""

    def __init__(
        self, bus: Bus, declare: Callable[[], Awaitable[object]], *, forget: Callable[[str], None], streams: Sequence[str]
    ) -> None:
        self._bus, self._declare, self._forget, self._streams = bus, declare, forget, streams
        self._doubtful = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, bus: Bus, declare: Callable[[], Awaitable[object]], *, forget: Callable[[str], None], streams: Sequence[str] = STREAMS
    ) -> AsyncIterator[StreamKeeper]:
        """`declare` makes all streams what they must be; `forget` is told the name of one that is gone, before that."""
        keeper = cls(bus, declare, forget=forget, streams=streams)
        heard = await bus.subscribe(f"{DELETED}.*", keeper._hear)
        bus.on_reconnect.append(keeper._doubtful.set)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(keeper._run())
            try:
                yield keeper
            finally:
                working.cancel()
                bus.on_reconnect.remove(keeper._doubtful.set)
                await heard.unsubscribe()

    def _hear(self, message: Message) -> None:
        stream = message.subject.removeprefix(f"{DELETED}.")
        if stream in self._streams:
            self._forget(stream)
            self._doubtful.set()

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            await self._doubtful.wait()
            self._doubtful.clear()
            try:
                gone = [stream for stream in self._streams if not await self._is_there(stream)]
                if gone:
                    log.error("stream.gone", streams=gone)
                    for stream in gone:
                        self._forget(stream)
                    await self._declare()
                    log.info("stream.declared", streams=gone)
                backoff_s = FIRST_BACKOFF_S
            except (ApiError, BusUnavailable) as error:
                log.warning("stream.not_declared", error=str(error), retry_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
                self._doubtful.set()

    async def _is_there(self, stream: str) -> bool:
        try:
            await self._bus.api(f"STREAM.INFO.{stream}", None, _Anything)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True
