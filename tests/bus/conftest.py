"""What the tests of pulling share: a function with its streams, and deliveries that can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pulling import CONFIG, STORE_BYTES, Deliveries, a_function

from faas.bus import consumers, streams
from faas.bus.connection import Bus
from faas.bus.consumers import Consumer


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries()


@pytest.fixture
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    """Where pullers put their tasks."""
    async with asyncio.TaskGroup() as group:
        yield group


@pytest.fixture
async def consumer(bus: Bus, tenant: str) -> Consumer:
    """The consumer of a function of this test, on `<tenant>.in`."""
    spec = a_function(tenant, "f", f"{tenant}.in")
    assert await streams.declare(bus, [spec], CONFIG, store_bytes=STORE_BYTES) == {}
    return (await consumers.ensure_consumers(bus, [spec], CONFIG))[spec.tenant, spec.name][0]
