"""The parts of the gateway that need the bus, put together: what they ask, what they hold, and how they end when the node stops.

`app.py` opens it before the node's own parts and leaves it behind them, so that what runs can still be answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from faas.bus.connection import Bus
from faas.bus.keys import Keys
from faas.bus.payloads import Payloads
from faas.config import HttpConfig
from faas.errors import FaasError
from faas.gateway.answers import Answering
from faas.gateway.asking import Asking
from faas.gateway.calls import Calls
from faas.gateway.invocations import Invocations
from faas.gateway.invoke import Invoking
from faas.gateway.server import Gateway
from faas.gateway.stream import Streams
from faas.gateway.tapes import Tapes
from faas.gateway.uploads import Bodies

FOLDER = "http"
"""In the state folder, for bodies on their way; its files have no names."""


class Doors:
    """`open` it: the gateway serves its routes from then on. `stop` it when the node begins to stop."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    @classmethod
    @asynccontextmanager
    async def open(cls, gateway: Gateway, bus: Bus, config: HttpConfig, *, node: str, state: Path, keys: Keys) -> AsyncIterator[Doors]:
        async with asyncio.TaskGroup() as group:
            asking, answering, tapes = Asking(bus, node), Answering(bus), Tapes(bus, group=group)
            calls = Calls(bus, asking, group=group)
            streams = Streams(bus, asking=asking, answering=answering, calls=calls, tapes=tapes)
            bodies = Bodies(config, Payloads(bus), folder=state / FOLDER)
            invoking = Invoking(bus, bodies, asking=asking, answering=answering, streams=streams, calls=calls, keys=keys)
            invocations = Invocations(asking=asking, answering=answering, streams=streams)
            bus.on_reconnect.append(calls.look_again)
            try:
                gateway.add([*invoking.routes(), *invocations.routes()])
                yield cls(asking)
            finally:
                bus.on_reconnect.remove(calls.look_again)
                with suppress(FaasError):
                    await bus.fence(timeout_s=1.0)  # answers that were sent have come
                tapes.close()
                calls.close()

    def stop(self) -> None:
        """Nobody new comes in; who follows what will not end here is let go."""
        self._asking.stop()
