"""The sandboxes of one runtime profile on this node: its environment, generic sandboxes kept ready, how many there may be.

Knows no function: the pool takes a generic sandbox, binds it, and says when it is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from faas.errors import ColdStartFailed, FaasError
from faas.model import Environment, RuntimeProfile, Start
from faas.pool.backend import Backend, Sandbox
from faas.pool.opening import Opening, Spawn
from faas.pool.worker import Worker

log = structlog.get_logger()

Build = Callable[[RuntimeProfile], Awaitable[Environment]]


@dataclass(slots=True, eq=False)
class _Generic:
    """A sandbox without a function and its spares."""

    sandbox: Sandbox
    spares: deque[Worker] = field(default_factory=deque)


class Sandboxes:
    """Environment, template and sandboxes of one profile. `changed` is called when one more can be taken; `evict` ends an idle one, if there is one."""

    def __init__(
        self,
        profile: RuntimeProfile,
        backend: Backend,
        build: Build,
        *,
        spawn: Spawn,
        evict: Callable[[str], bool],
        evictable: Callable[[str], bool],
        changed: Callable[[], None],
    ) -> None:
        self.profile = profile
        self._backend = backend
        self._build = build
        self._spawn = spawn
        self._evict, self._evictable, self._changed = evict, evictable, changed
        self.environment: Environment | None = None
        self._opening = Opening(profile.name, self._open, spawn=spawn)
        self._generic: deque[_Generic] = deque()
        self._retiring: set[Sandbox] = set()
        self._starting = 0
        self._bound = 0
        self.promised = 0  # turns handed out to functions that have no sandbox yet
        self._closed = False

    # ------------------------------------------------------------ ready

    @property
    def is_ready(self) -> bool:
        """Whether a sandbox can be started without building or importing first."""
        return self.environment is not None and self._backend.is_prepared(self.profile)

    async def ready(self) -> bool:
        """Wait until environment and template stand, and start that where nobody has; True where it had to. Raises EnvironmentFailed."""
        if self.is_ready:
            return False
        await self._opening.wait()
        return True

    async def _open(self) -> None:
        self.environment = await self._build(self.profile)
        await self._backend.prepare(self.profile, self.environment)
        self.replenish()
        self._changed()

    def abandon(self, error: FaasError) -> None:
        """Tell those that wait for the environment that it will not come: the node stops."""
        self._closed = True
        self._opening.abandon(error)

    # ------------------------------------------------------------ generic sandboxes

    def replenish(self) -> None:
        """Start generic sandboxes in the background until `min_warm` are ready, as far as `max` leaves room."""
        pool = self.profile.pool
        while not self._closed and self.is_ready and len(self._generic) + self._starting < pool.min_warm and self._count < pool.max:
            self._starting += 1
            self._spawn(self._start_generic())

    @property
    def _count(self) -> int:
        return self._bound + len(self._generic) + self._starting

    async def _start_generic(self) -> None:
        assert self.environment is not None
        try:
            generic = _Generic(await self._backend.start(self.profile, self.environment))
            for _ in range(self.profile.pool.spares):
                spare = await _fork(generic.sandbox)
                spare.on_lost = lambda worker: self._lost(generic, worker)
                generic.spares.append(spare)
        except ColdStartFailed as error:
            # Not started again until one is asked for: a warm-up that always fails would go round for ever.
            log.warning("sandbox.not_started", profile=self.profile.name, error=str(error))
            return
        finally:
            self._starting -= 1
        if self._closed or self._bound + len(self._generic) >= self.profile.pool.max:
            generic.sandbox.kill()
            return
        self._generic.append(generic)
        self._changed()

    def _lost(self, generic: _Generic, worker: Worker) -> None:
        """A spare died before anybody used it: its sandbox is not trusted further."""
        if generic in self._generic:
            log.warning("spare.lost", profile=self.profile.name, worker=worker.id)
            self._generic.remove(generic)
            generic.sandbox.kill()

    # ------------------------------------------------------------ taking one

    @property
    def has_room(self) -> bool:
        """Whether a sandbox can be taken now: a generic one, room for one more, or an idle one that may go."""
        free = max(len(self._generic), self.profile.pool.max - self._bound)
        return self.promised < free or (not self.promised and self._evictable(self.profile.name))

    async def take(self) -> tuple[Sandbox, Worker, Start]:
        """A sandbox for one function version, and its first worker. Raises ColdStartFailed, EnvironmentFailed."""
        self._bound += 1
        try:
            return await self._take()
        except BaseException:
            self._bound -= 1
            raise

    async def _take(self) -> tuple[Sandbox, Worker, Start]:
        start: Start = "cold" if not self._backend.is_prepared(self.profile) else "fork"
        while self._generic:
            generic = self._generic.popleft()
            if generic.sandbox.alive:
                self.replenish()
                if generic.spares:
                    return generic.sandbox, generic.spares.popleft(), "spare"
                return generic.sandbox, await _fork(generic.sandbox), "fork"
        if self._bound > self.profile.pool.max:
            self._evict(self.profile.name)
        if self.environment is None:
            await self.ready()
        assert self.environment is not None
        sandbox = await self._backend.start(self.profile, self.environment)
        worker = await _fork(sandbox)
        self.replenish()
        return sandbox, worker, start

    def gone(self) -> None:
        """A bound sandbox has ended."""
        self._bound -= 1
        self.replenish()

    def retire(self, sandbox: Sandbox, *, within_s: float) -> None:
        """End a bound sandbox when its workers have had so long for their `close`, or with the pool."""
        self._retiring.add(sandbox)

        def end() -> None:
            self._retiring.discard(sandbox)
            sandbox.kill()

        asyncio.get_running_loop().call_later(within_s, end)

    def kill(self) -> None:
        """End the generic sandboxes and those that retire now, and start no more."""
        self._closed = True
        for sandbox in self._retiring:
            sandbox.kill()
        while self._generic:
            self._generic.popleft().sandbox.kill()


async def _fork(sandbox: Sandbox) -> Worker:
    """A worker of a sandbox that nobody else knows yet; it goes where that fails."""
    try:
        return await sandbox.fork()
    except BaseException:
        sandbox.kill()
        raise
