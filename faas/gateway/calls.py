"""Synchronous calls that wait for their answer: nodes are told where nobody waits any more, and callers where no answer will come. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from faas import subjects
from faas.bus.connection import Bus, encode_head
from faas.errors import FaasError
from faas.gateway.asking import Asking

LOOK_S = 10.0
"""A call that takes longer is asked after: its node may have died, and no answer of a dead node ever comes."""
AGAIN_S = 3.0
"""Between two questions without an answer before a call is given up: after an outage nodes come back one after another."""
LOST = "502"
"""`Nats-Service-Error-Code` of an answer that says so."""


@dataclass(slots=True)
class Waiting:
    """One call; whoever gets its answer sets `answered`, else its node is told that nobody waits."""

    reply_to: str
    answered: bool = False


class Calls:
    """`group` runs what asks after them."""

    def __init__(self, bus: Bus, asking: Asking, *, group: asyncio.TaskGroup) -> None:
        self._bus, self._asking, self._group = bus, asking, group
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def waiting(self, reply_to: str) -> Iterator[Waiting]:
        """While the block runs somebody waits for what comes there."""
        call = Waiting(reply_to)
        self._look_in(LOOK_S, reply_to)
        try:
            yield call
        finally:
            self._timers.pop(reply_to).cancel()
            if not call.answered:
                with suppress(FaasError):
                    self._bus.publish_soon(subjects.GONE, reply_to.encode())

    def look_again(self) -> None:
        """The connection was lost, and answers or calls with it."""
        for reply_to, timer in list(self._timers.items()):
            timer.cancel()
            self._look_in(AGAIN_S, reply_to)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _look_in(self, delay_s: float, reply_to: str) -> None:
        self._timers[reply_to] = self._loop.call_later(delay_s, self._look, reply_to)

    def _look(self, reply_to: str) -> None:
        task = self._group.create_task(self._ask_after(reply_to))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_after(self, reply_to: str) -> None:
        for last in (False, True):
            if not self._bus.connected or await self._asking.answering(reply_to):
                break
            if last:
                said = "its node has died, or the bus lost it; it may have run"
                head = encode_head([("Nats-Service-Error-Code", LOST), ("Nats-Service-Error", said)])
                with suppress(FaasError):
                    await self._bus.publish(reply_to, b"", head=head)
            else:
                await asyncio.sleep(AGAIN_S)
        if reply_to in self._timers:
            self._look_in(LOOK_S, reply_to)
