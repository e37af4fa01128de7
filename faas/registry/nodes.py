"""Which nodes there are: each says so again and again in the bucket `FAAS_NODES`, whose keys go by themselves when it says no more.

Knows nothing of what a node does; whoever announces hands over what is to be said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog
from msgspec import Struct

from faas import subjects
from faas.bus.connection import Bus, NoStream
from faas.bus.keyvalue import KeyValue
from faas.errors import BusUnavailable, FaasError

log = structlog.get_logger()

BEAT_S = 5.0
LEASE_S = 15.0
"""A node that was not heard of for so long is none: two beats may be lost."""


class NodeSeen(Struct, frozen=True, kw_only=True):
    """What a node says of itself. `since` and `last_seen` are RFC 3339, the latter by the bus's clock."""

    name: str
    host: str
    version: str
    since: str
    slots: int
    functions: tuple[str, ...]
    last_seen: str = ""


class Nodes:
    """The bucket of one bus."""

    def __init__(self, bus: Bus) -> None:
        self._entries = KeyValue(bus, subjects.NODES)

    async def list(self) -> list[NodeSeen]:
        """Those that were heard of within LEASE_S, by name. Raises BusUnavailable."""
        found = []
        async for entry in self._entries.since(0):
            if not entry.deleted:
                with suppress(msgspec.DecodeError):  # of a version that says other things
                    found.append(msgspec.structs.replace(msgspec.json.decode(entry.value, type=NodeSeen), last_seen=entry.stored_at))
        return sorted(found, key=lambda node: node.name)

    @asynccontextmanager
    async def announced(self, say: Callable[[], NodeSeen], *, replicas: int) -> AsyncIterator[None]:
        """Be on the list while the block runs; a clean end takes it off at once. Raises BusUnavailable before the block."""
        name = say().name
        await self._entries.ensure(replicas=replicas, max_age_s=LEASE_S)
        await self._entries.put(name, msgspec.json.encode(say()))
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._beat(say, replicas))
                try:
                    yield
                finally:
                    beating.cancel()
        finally:
            with suppress(BusUnavailable):  # it goes by itself
                await self._entries.delete(name)

    async def _beat(self, say: Callable[[], NodeSeen], replicas: int) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            node = say()
            try:
                await self._entries.put(node.name, msgspec.json.encode(node))
            except NoStream:  # somebody has deleted the bucket; the next beat finds it
                with suppress(FaasError):
                    await self._entries.ensure(replicas=replicas, max_age_s=LEASE_S)
            except FaasError as error:
                log.warning("node.not_announced", error=str(error))
