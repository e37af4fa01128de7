"""Something that takes long and is wanted by many: opened once by whoever asks first, for all that ask. Knows not what it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine

import structlog

from faas.errors import EnvironmentFailed, FaasError

log = structlog.get_logger()

RETRY_AFTER_S = 10.0
"""How long a failure answers for those that ask again: each event would start a build otherwise."""
RETRY_INTERRUPTED_S = 1.0
"""The same for a build that was killed: by the machine that ran out of memory, or by somebody's hand; nothing is wrong with what it built."""

Spawn = Callable[[Coroutine[None, None, None]], None]


class Opening:
    """Opens with `open`, again for whoever asks after a failure has answered long enough. `name` is what the log says."""

    def __init__(self, name: str, open: Callable[[], Awaitable[None]], *, spawn: Spawn) -> None:
        self._name, self._open, self._spawn = name, open, spawn
        self._waiting: asyncio.Future[None] | None = None
        self._failed: EnvironmentFailed | None = None
        self._retry_monotonic = 0.0

    async def wait(self) -> None:
        """Until it is open. Raises EnvironmentFailed, for a while also to those that ask after a failure."""
        if self._waiting is None:
            if self._failed is not None and time.monotonic() < self._retry_monotonic:
                raise self._failed
            self._waiting = asyncio.get_running_loop().create_future()
            self._waiting.add_done_callback(lambda done: done.exception())  # it may be that nobody waits for it
            self._spawn(self._run(self._waiting))
        await asyncio.shield(self._waiting)

    async def _run(self, waiting: asyncio.Future[None]) -> None:
        failed: EnvironmentFailed | None = None
        try:
            await self._open()
        except (FaasError, OSError) as error:
            log.error("environment.failed", name=self._name, error=str(error))
            failed = error if isinstance(error, EnvironmentFailed) else EnvironmentFailed(self._name, str(error))
            self._retry_monotonic = time.monotonic() + (RETRY_INTERRUPTED_S if failed.interrupted else RETRY_AFTER_S)
        self._failed = failed
        self._waiting = None
        if not waiting.done():
            waiting.set_exception(failed) if failed else waiting.set_result(None)

    def abandon(self, error: FaasError) -> None:
        """Tell those that wait that it will not come: the node stops."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
