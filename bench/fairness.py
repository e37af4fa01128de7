"""What does a flood of one function cost the others? One at 200 % of the node beside eight that ask for 30 % together.

Every handler sleeps, so that slots are what is scarce. Latency is from a publish (or request) until the outcome (or answer) is heard,
of the eight: alone, then beside the flood. Once with the node's fair queue, and once with first-come-first-served in its place, a
class of the same interface; since waiting in the stream is not first come first served either, that node also takes events as
they come. Arrivals are random, with a seed; both policies get the same.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import nats
import uvloop
from measure import Figure, Goal
from nats.aio.client import Client
from nats.aio.msg import Msg

LIGHTS = [f"light-{number}" for number in range(8)]
FLOOD_SHARE, LIGHTS_SHARE = 2.0, 0.3
BOUND = 3.5
TAKEN_AS_THEY_COME = 1000
BUILD_UP_S = 2.0
"""Of the flood, before the eight are measured: its queue must stand."""

POLICIES = {"start-time fair": "fair", "first come, first served": "fcfs"}


class FirstComeFirstServed:
    """The interface of `faas.scheduling.fair_queue.FairQueue`, with one queue for all."""

    def __init__(self) -> None:
        self._items: dict[Any, tuple[str, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def __contains__(self, flow: tuple[str, str]) -> bool:
        return flow in self._items.values()

    def put(self, flow: tuple[str, str], item: Any) -> None:
        self._items[item] = flow

    def remove(self, flow: tuple[str, str], item: Any) -> bool:
        return self._items.pop(item, None) is not None

    def take(self, may_start: Callable[[tuple[str, str]], bool], bill: object) -> tuple[tuple[str, str], Any] | None:
        item = next((item for item, flow in self._items.items() if may_start(flow)), None)
        return None if item is None else (self._items.pop(item), item)

    def pass_by(self, flow: tuple[str, str], bill: object) -> None: ...

    def rest(self) -> None: ...

    def clear(self) -> list[Any]:
        items = list(self._items)
        self._items.clear()
        return items


def serve(policy: str) -> None:
    """`faas up` with the policy in place of the node's own; the words behind it are those of the command line."""
    from faas.cli.main import main as faas
    from faas.pool import pool

    if policy == "fcfs":
        pool.FairQueue = FirstComeFirstServed  # type: ignore[assignment,misc]
        pool.WorkerPool.appetite = lambda self, flow, promised=0: TAKEN_AS_THEY_COME  # type: ignore[assignment]
    sys.argv = ["faas", *sys.argv[3:]]
    sys.exit(faas())


class Generator:
    """Events and requests at random moments, and what became of them; one nats-py connection in this process."""

    def __init__(self, client: Client, settings: Namespace) -> None:
        self._client, self._stream, self._settings = client, client.jetstream(publish_async_max_pending=4000), settings
        self._random = random.Random(settings.seed)
        self._published: dict[str, float] = {}
        self._none_open = asyncio.Event()
        self.latencies: list[float] = []

    async def listen(self) -> None:
        """Hear the outcomes of the eight."""

        async def hear(message: Msg) -> None:
            head = message.headers or {}
            if head["Faas-Event-Id"] in self._published:
                _check(head)
                self._ended(head["Faas-Event-Id"])

        await self._client.subscribe("faas.outcome.default.*.*", cb=hear)
        await self._stream.account_info()  # a fence: the subscription is there

    async def event(self, name: str) -> None:
        event_id = f"{name}-{self._random.getrandbits(64):x}"
        if name in LIGHTS:
            self._published[event_id] = time.perf_counter()
        await self._stream.publish_async(f"bench.{name}", b"1", headers={"Nats-Msg-Id": event_id})

    async def request(self, name: str) -> None:
        subject = f"faas.invoke.default.{name}"
        if name not in LIGHTS:
            await self._client.publish(subject, b"1", reply="bench.nobody")
            return
        mark = f"{name}-{self._random.getrandbits(64):x}"
        self._published[mark] = time.perf_counter()
        reply = await self._client.request(subject, b"1", timeout=60)
        _check(reply.headers or {})
        self._ended(mark)

    def _ended(self, mark: str) -> None:
        self.latencies.append(time.perf_counter() - self._published.pop(mark))
        if not self._published:
            self._none_open.set()

    async def run(self, names: list[str], per_s: float, seconds: float, ask: Callable[[str], Awaitable[None]]) -> None:
        """Ask at random moments, `per_s` for all names together, and do not wait for what comes of it."""
        due = time.perf_counter()
        end = due + seconds
        async with asyncio.TaskGroup() as group:
            while due < end:
                due += self._random.expovariate(per_s)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(_ask(ask, self._random.choice(names)))

    async def settled(self) -> None:
        """Until everything of the eight has ended."""
        async with asyncio.timeout(120):
            while self._published:
                self._none_open.clear()
                await self._none_open.wait()


async def _ask(ask: Callable[[str], Awaitable[None]], name: str) -> None:
    await ask(name)


def _check(head: dict[str, str]) -> None:
    if head.get("Faas-Outcome") != "succeeded":
        raise RuntimeError(f"an event of the eight ended as {head}")


async def latencies(url: str, settings: Namespace, kind: str) -> tuple[list[float], list[float]]:
    """Of the eight: alone, and beside the flood."""
    client = await nats.connect(url)
    load = Generator(client, settings)
    await load.listen()
    ask = load.event if kind == "durable" else load.request
    capacity = settings.slots / (settings.hold_ms / 1000)
    await load.run([*LIGHTS, "flood"], capacity * LIGHTS_SHARE, 1.0, ask)  # warm
    await load.settled()
    found = []
    for beside in (False, True):
        load.latencies = []
        async with asyncio.TaskGroup() as group:
            if beside:
                group.create_task(load.run(["flood"], capacity * FLOOD_SHARE, settings.seconds + BUILD_UP_S, ask))
                await asyncio.sleep(BUILD_UP_S)
            await load.run(LIGHTS, capacity * LIGHTS_SHARE, settings.seconds, ask)
        await load.settled()
        found.append(load.latencies)
    await client.close()
    return found[0], found[1]


def measured(policy: str, kind: str, settings: Namespace) -> tuple[dict[str, Figure], float]:
    handler = f"import time\ndef handle(event):\n    time.sleep({settings.hold_ms / 1000})\n"
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        for name in LIGHTS:
            measure.function(functions, name, handler=handler, spec=f'[[trigger]]\nsubject = "bench.{name}"\n[scale]\nmin_warm = 1\n')
        flood = f'[[trigger]]\nsubject = "bench.flood"\n[scale]\nmax_workers = {2 * settings.slots}\n'
        measure.function(functions, "flood", handler=handler, spec=flood)
        node = stack.enter_context(
            measure.node(
                functions,
                state=state,
                config=f'[bus]\nsync = "default"\n[pool]\nslots = {settings.slots}\n',
                program=(sys.executable, __file__, "serve", POLICIES[policy]),
                options=("--environments", "current"),
            )
        )
        alone, beside = uvloop.run(latencies(node.url, settings, kind))
    means = [1000 * sum(values) / len(values) for values in (alone, beside)]
    row: dict[str, Figure] = {
        "policy": policy,
        "kind": kind,
        "n": len(beside),
        "alone_mean_ms": means[0],
        "beside_mean_ms": means[1],
        "alone_p99_ms": 1000 * measure.percentile(alone, 0.99),
        "beside_p99_ms": 1000 * measure.percentile(beside, 0.99),
        "times": means[1] / means[0],
    }
    return row, means[1] / means[0]


def main() -> None:
    settings = measure.arguments(__doc__ or "", seconds=15.0, slots=8, hold_ms=40, seed=1)
    rows: list[dict[str, Figure]] = []
    goals: list[Goal] = []
    for policy in POLICIES:
        for kind in ("durable", "synchronous"):
            row, times = measured(policy, kind, settings)
            rows.append(row)
            if POLICIES[policy] == "fair":
                goals.append(Goal(f"mean latency of the eight beside the flood, {kind}", times, BOUND, unit="x of alone"))
    measure.report("Fairness: one function at 200 % of the node beside eight at 30 % together", rows, goals, settings=settings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"] and Path(sys.argv[0]).name == Path(__file__).name:
        serve(sys.argv[2])
    main()
