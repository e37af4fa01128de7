"""The packages of one function on this node: built once its profile's environment stands, and asked for anew after a failure.

A failure is this function's alone; its profile's others go on. Knows no sandbox and no worker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from faas.errors import FaasError
from faas.model import Environment, FunctionVersion, RuntimeProfile
from faas.pool.opening import Opening, Spawn

BuildOverlay = Callable[[FunctionVersion, RuntimeProfile], Awaitable[Environment]]


class Overlay:
    """`environment` is the profile's with the function's packages, None until they are built."""

    def __init__(self, function: FunctionVersion, profile: RuntimeProfile, build: BuildOverlay, *, spawn: Spawn) -> None:
        self._function, self._profile, self._build = function, profile, build
        self._opening = Opening(function.spec.name, self._open, spawn=spawn)
        self.environment: Environment | None = None

    async def ready(self) -> bool:
        """Wait until the packages are there, and build them where nobody does; True where it had to. Raises EnvironmentFailed."""
        if self.environment is not None:
            return False
        await self._opening.wait()
        return True

    async def _open(self) -> None:
        self.environment = await self._build(self._function, self._profile)

    def abandon(self, error: FaasError) -> None:
        """Tell those that wait for it that it will not come."""
        self._opening.abandon(error)
