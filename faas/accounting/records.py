"""Usage records on their way to FAAS_USAGE: gathered for at most LINGER_S or BATCH records of a function, then stored as one message.

Knows how records are sent, not what is in them. A batch that the bus does not take is tried again, with the same
`Nats-Msg-Id`, until it does or the node stops.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from faas import subjects
from faas.bus.connection import Bus
from faas.errors import FaasError

log = structlog.get_logger()

LINGER_S = 0.010
BATCH = 64
BATCH_BYTES = 256 * 1024
HEAD_BYTES = 512
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 5.0
CLOSE_S = 2.0
"""How long the last batches may take when the node stops; durable ones are in their outcomes too."""


class _Batch:
    __slots__ = ("records", "size_bytes", "stored", "timer")

    def __init__(self, stored: asyncio.Future[None], timer: asyncio.TimerHandle) -> None:
        self.records: list[bytes] = []
        self.size_bytes = 0
        self.stored = stored
        self.timer = timer


class UsageRecords:
    """Batches usage records by (tenant, function). `open` owns the tasks that store them."""

    def __init__(self, bus: Bus, group: asyncio.TaskGroup) -> None:
        self._bus = bus
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._batches: dict[tuple[str, str], _Batch] = {}
        self._sending: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus) -> AsyncIterator[UsageRecords]:
        async with asyncio.TaskGroup() as group:
            records = cls(bus, group)
            try:
                yield records
            finally:
                await records._close()

    async def store(self, tenant: str, function: str, *records: bytes) -> None:
        """Put encoded records into the next batch of the function, and wait until it is stored."""
        # Shielded for all who wait for the batch: one that gives up must not take it from the others.
        await asyncio.shield(self.add(tenant, function, *records))

    def add(self, tenant: str, function: str, *records: bytes) -> asyncio.Future[None]:
        """Put encoded records into the next batch of the function; what is returned is of all in that batch, and not to be cancelled."""
        key = (tenant, function)
        size_bytes = sum(map(len, records)) + len(records)
        batch = self._batches.get(key)
        if batch is not None and batch.size_bytes + size_bytes > min(BATCH_BYTES, self._bus.body_limit_bytes - HEAD_BYTES):
            self._send(key)
            batch = None
        if batch is None:
            batch = _Batch(self._loop.create_future(), self._loop.call_later(LINGER_S, self._send, key))
            self._batches[key] = batch
        batch.records += records
        batch.size_bytes += size_bytes
        if len(batch.records) >= BATCH:
            self._send(key)
        return batch.stored

    def _send(self, key: tuple[str, str]) -> None:
        batch = self._batches.pop(key, None)
        if batch is not None:
            batch.timer.cancel()
            task = self._group.create_task(self._store(key, batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _store(self, key: tuple[str, str], batch: _Batch) -> None:
        body = b"[" + b",".join(batch.records) + b"]"
        head = b"Nats-Msg-Id: " + hashlib.sha256(body).hexdigest()[:32].encode() + b"\r\nContent-Type: application/json\r\n"
        retry_s = FIRST_RETRY_S
        while True:
            try:
                await self._bus.store(subjects.usage(*key), body, head=head)
            except FaasError as error:
                log.warning("usage.refused", tenant=key[0], function=key[1], records=len(batch.records), error=str(error), retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            else:
                if not batch.stored.done():
                    batch.stored.set_result(None)
                return

    async def _close(self) -> None:
        for key in list(self._batches):
            self._send(key)
        if self._sending:
            _, late = await asyncio.wait(self._sending, timeout=CLOSE_S)
            for task in late:
                log.error("usage.lost", reason="the bus took no record before the node stopped")
                task.cancel()
