"""What the pool asks of a backend: start sandboxes of a profile, fork workers in them, and end both. Knows no function, no queue, no bus."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from faas.model import Environment, RuntimeProfile
from faas.pool.worker import Worker


class Sandbox(Protocol):
    """One isolated place for the workers of one function version. Generic until the pool binds it; then never another's."""

    id: str
    profile: str

    @property
    def alive(self) -> bool:
        """False once its zygote has ended; its workers are lost then too."""

    async def fork(self) -> Worker:
        """A new worker: forked, warmed up, connected, without a function (a spare). Raises ColdStartFailed."""

    def kill(self) -> None:
        """End it and everything in it now. Returns at once; may be called again."""


class Backend(Protocol):
    """Starts sandboxes. An async context manager: leaving it ends every process that it started."""

    enforced: frozenset[str]
    """Which of the limits "memory", "cpus" and "pids" this machine lets it enforce."""

    def is_prepared(self, profile: RuntimeProfile) -> bool:
        """Whether a sandbox of the profile starts without its template or image having to start first (else its start is `cold`)."""

    async def prepare(self, profile: RuntimeProfile, environment: Environment) -> None:
        """Start what all sandboxes of the profile come from: the template. Raises ColdStartFailed. Again: only if it has died."""

    async def start(self, profile: RuntimeProfile, environment: Environment) -> Sandbox:
        """A new generic sandbox, prepared first where it must be. Raises ColdStartFailed."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
