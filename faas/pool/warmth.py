"""How long idle workers and their sandboxes stay: keep-alive, and which sandbox goes where another function needs its room.

Decides over what the pool holds of its functions; hands out nothing, and knows neither slots nor the queue for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from faas.pool.lease import Served
from faas.pool.worker import Worker
from faas.scheduling.fair_queue import Flow

log = structlog.get_logger()

SECRETS_S = 1.0
"""How long an idle worker may hold a secret that has changed: its next event would replace it at once, and none may come."""
RETIRE_S = 2.0
"""How long `close` of the workers of a retired sandbox may take before it is killed."""


class Warmth:
    """Retires what has been idle too long, and evicts on request. `served` is the pool's own table, which it reads and never changes."""

    def __init__(self, served: Mapping[Flow, Served]) -> None:
        self._served = served
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at_monotonic = 0.0

    # ------------------------------------------------------------ keep-alive

    def look_at(self, at_monotonic: float) -> None:
        """Look for what may go at this moment, or earlier where that is planned already."""
        if self._timer is not None and self._at_monotonic <= at_monotonic:
            return
        self.stop()
        self._at_monotonic = at_monotonic
        self._timer = self._loop.call_later(max(0.0, at_monotonic - time.monotonic()), self._look)

    def stop(self) -> None:
        """Retire nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Retire what has been idle past its keep-alive, and come again when the next may be."""
        self._timer = None
        now = time.monotonic()
        coming: list[float] = []
        for served in self._served.values():
            scale = served.function.spec.scale
            while len(served.idle) > scale.min_warm - served.leased and served.idle:
                if served.idle[0].idle_since_monotonic + scale.keep_alive_s > now:
                    coming.append(served.idle[0].idle_since_monotonic + scale.keep_alive_s)
                    break
                served.idle.pop(0).retire()
            if served.sandbox is not None and not served.idle and not served.leased and not served.prewarming:
                until = served.idle_since_monotonic + served.sandboxes.profile.pool.keep_alive_s
                if until > now:
                    coming.append(until)
                else:
                    unbind(served)
        if coming:
            self.look_at(min(coming))

    # ------------------------------------------------------------ secrets

    async def watch_secrets(self, keep_warm: Callable[[Served], None]) -> None:
        """Retire idle workers whose secrets have changed, and have others take their place where some are kept warm."""
        while True:
            await asyncio.sleep(SECRETS_S)
            for served in list(self._served.values()):
                for worker in [worker for worker in served.idle if served.has_expired(worker)]:
                    served.idle.remove(worker)
                    worker.retire()
                    log.info("worker.replaced", function=served.function.spec.name, worker=worker.id, why="its secrets have changed")
                    keep_warm(served)

    # ------------------------------------------------------------ eviction

    def evictable(self, profile: str) -> bool:
        """Whether `evict` would find a sandbox of the profile."""
        return self._longest_idle(profile) is not None

    def evict(self, profile: str) -> bool:
        """End the sandbox of the profile that has been idle longest; False where none is idle."""
        served = self._longest_idle(profile)
        if served is not None:
            log.info("sandbox.evicted", profile=profile, function=served.function.spec.name)
            unbind(served)
        return served is not None

    def _longest_idle(self, profile: str) -> Served | None:
        idle = [
            served
            for served in self._served.values()
            if served.sandbox is not None and not served.leased and not served.prewarming and served.sandboxes.profile.name == profile
        ]
        # What somebody wants kept warm goes last.
        return min(idle, key=lambda served: (served.function.spec.scale.min_warm > 0, served.idle_since_monotonic), default=None)


def unbind(served: Served) -> None:
    """Take a function's sandbox from it: its idle workers retire, then it ends."""
    if served.sandbox is not None:
        idle, served.idle = served.idle, []
        for worker in idle:
            worker.retire()
        sandbox, served.sandbox = served.sandbox, None
        if idle:
            served.sandboxes.retire(sandbox, within_s=RETIRE_S)
        else:
            sandbox.kill()
        served.sandboxes.gone()


async def retire_all(workers: Sequence[Worker], *, within_s: float) -> None:
    """Let idle workers run their handler's `close`, for so long at most."""
    left, gone = set(workers), asyncio.Event()

    def count_down(worker: Worker) -> None:
        left.discard(worker)
        if not left:
            gone.set()

    for worker in workers:
        worker.on_lost = count_down
        worker.retire()
    try:
        async with asyncio.timeout(within_s):
            await gone.wait()
    except TimeoutError:
        log.warning("workers.killed", workers=len(left), reason="close() took too long")
