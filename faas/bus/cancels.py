"""Who cancelled what, for every node to see: the bucket FAAS_CANCELLED, kept as long as the event may still be waiting somewhere.

A core message alone cannot reach an event that is still in a stream or in a schedule. Knows no attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from faas import subjects
from faas.bus.connection import Bus, Message, Subscription, encode_head
from faas.bus.reading import messages_of
from faas.bus.streams import find_stream
from faas.errors import FaasError

log = structlog.get_logger()

STREAM = f"KV_{subjects.CANCELLED}"
KEYS = f"$KV.{subjects.CANCELLED}."
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 5.0
LONGEST_S = 7 * 86_400
"""`queue_timeout` is at most so long: after it nothing waits any more."""

OnCancel = Callable[[str, float], None]


class Cancels:
    """Reads and writes the bucket. `watch` it once and `read` it; from then on `on_cancel(invocation, until)` is called for each, `until` in seconds since the epoch."""

    def __init__(self, bus: Bus, on_cancel: OnCancel) -> None:
        self._bus, self._on_cancel = bus, on_cancel

    async def watch(self) -> Subscription:
        """Take what comes, until that is unsubscribed; what is there already, and what came while the connection was lost, `read` takes."""
        return await self._bus.subscribe(f"{KEYS}*", self._hear)

    async def read(self) -> None:
        """Take everything that is there, nothing where there is no bucket yet; tried until it succeeds, since whoever misses one runs what was cancelled."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                if await find_stream(self._bus, STREAM) is not None:
                    async for message in messages_of(self._bus, STREAM, f"{KEYS}*"):
                        self._hear(Message(message.subject, "", message.data, dict(message.headers)))
                return
            except FaasError as error:
                log.warning("cancels.not_read", error=str(error), retry_s=retry_s)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    def _hear(self, message: Message) -> None:
        try:
            until = float(message.data)
        except ValueError:
            return  # deleted, or written by somebody else
        self._on_cancel(message.subject.removeprefix(KEYS), until)

    async def put(self, invocation: str, *, for_s: float) -> None:
        """Tell every node. Raises BusUnavailable."""
        lasting_s = max(1, min(LONGEST_S, round(for_s)))
        head = encode_head([("Nats-TTL", f"{lasting_s}s")])
        await self._bus.store(f"{KEYS}{invocation}", str(self._bus.now() + lasting_s).encode(), head=head)
