"""Functions, streams of a size that fits a test, and deliveries that can be waited for."""

from __future__ import annotations

import asyncio

from faas.bus.pull import Delivery
from faas.config import BusConfig
from faas.model import FunctionSpec
from faas.triggers import Trigger
from faas.units import Duration

CONFIG = BusConfig(ack_wait_s=Duration(2), sync="default")
STORE_BYTES = 2**29


class Deliveries:
    """Collects what a puller hands on, and can be waited on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self._queue.put_nowait(delivery)

    async def next(self, within_s: float = 8.0) -> Delivery:
        async with asyncio.timeout(within_s):
            return await self._queue.get()

    @property
    def waiting(self) -> int:
        return self._queue.qsize()


def a_function(tenant: str, name: str, *triggers: str) -> FunctionSpec:
    return FunctionSpec(name=name, tenant=tenant, triggers=tuple(Trigger(subject=subject) for subject in triggers))
