"""Faults at random, from a seed: what `bench/chaos.py` runs for long and `test_storm.py` for a while."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from world import ACK_WAIT_S, World

WINDOWS = ("running", "after_outcome", "before_ack")
"""Running; between outcome and usage; between usage and acknowledgement."""
NODES = ("a", "b")


@dataclass
class Storm:
    """`rage` while events are published; `counts` says what was done, and how many kills fell into each window."""

    world: World
    counts: Counter[str] = field(default_factory=Counter)

    async def rage(self, publishing: asyncio.Future[None], *, windows_each: int) -> None:
        """One fault after the other until all is published and every window has had its kills."""
        random = self.world.random
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._kill_worker, self._kill_worker, self._kill_node, self._kill_server, self._restart_server, self._freeze_node, self._drain_node,
        ]  # fmt: skip
        while not publishing.done() or min(self.counts[window] for window in WINDOWS) < windows_each:
            short = min(WINDOWS, key=lambda window: self.counts[window])
            if (publishing.done() or random.random() < 0.5) and self.counts[short] < windows_each:
                await self._crash_in(short)
            else:
                await random.choice(kinds)()
            await asyncio.sleep(random.uniform(0.0, 0.3))
        for name in NODES:
            if not self.world.is_up(name):
                await self.world.node(name)

    async def _crash_in(self, window: str) -> None:
        name = self.world.random.choice(NODES)
        await self.world.kill(name)
        await self.world.node(name, crash_at=f"{window}:{self.world.random.randint(1, 4)}")
        for _ in range(5):
            await self.world.publish(8)  # some of it comes its way
            try:
                async with asyncio.timeout(1):
                    await self.world.ended(name)
                    self.counts[window] += 1
                    break
            except TimeoutError:
                continue
        await self.world.kill(name)
        await self.world.node(name)

    async def _kill_worker(self) -> None:
        self.counts["worker killed"] += self.world.kill_worker(self.world.random.choice(NODES))

    async def _kill_node(self) -> None:
        name = self.world.random.choice(NODES)
        await self.world.kill(name)
        await self.world.node(name)
        self.counts["node killed"] += 1

    async def _drain_node(self) -> None:
        name = self.world.random.choice(NODES)
        await self.world.kill(name, signal.SIGTERM)
        await self.world.node(name)
        self.counts["node drained"] += 1

    async def _freeze_node(self) -> None:
        process = self.world.nodes[self.world.random.choice(NODES)].process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(ACK_WAIT_S * 1.3)
        process.send_signal(signal.SIGCONT)
        self.counts["node frozen"] += 1

    async def _kill_server(self) -> None:
        await self.world.kill_server(signal.SIGKILL)
        self.counts["server killed"] += 1

    async def _restart_server(self) -> None:
        await self.world.kill_server(signal.SIGTERM)
        self.counts["server restarted"] += 1
