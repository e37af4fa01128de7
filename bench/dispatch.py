"""What does the way through a node cost beside the bus alone? Latency and throughput of `functions/hello`, warm, against bare floors.

Three kinds of event, each against a floor on the same nats-server (floor.py): a synchronous request; a durable event
without an id; a durable event with an explicit `Nats-Msg-Id`, for which the node looks up whether it has run already.
Blocks of floor and node alternate, so that drift of the host hits both. What strangers on the host used while a block ran stands beside it
(`others_cores`): alternating does not take that out. Everything twice: `[bus] sync` "default" and "always".
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import floor
import measure
import nats
import uvloop
from measure import Figure, Goal
from nats.aio.client import Client
from nats.aio.msg import Msg

HELLO = Path(__file__).resolve().parents[1] / "functions" / "hello"
BODY = b'{"name":"Ada"}'
INVOKE, EVENT, OUTCOME = "faas.invoke.default.hello", "demo.hello", "faas.outcome.default.hello"
WARM_S = 0.5
PUBLISHED_AT_ONCE = 256
"""Unacknowledged events of the generator: enough to keep the server busy, few enough to lose none."""


@dataclass(slots=True)
class Side:
    """What one side of a question gave: every latency or each block's rate, and the cores that strangers used in each block."""

    values: list[float] = field(default_factory=list)
    by_block: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    async def add(self, block: Awaitable[list[float]]) -> None:
        strangers = measure.Others()
        values = await block
        self.others.append(strangers.cores())
        self.values += values
        self.by_block.append(measure.percentile(values, 0.5))

    @property
    def middle(self) -> float:
        return measure.percentile(self.values, 0.5)

    @property
    def strangers(self) -> float:
        return measure.percentile(self.others, 0.5)


@dataclass(slots=True)
class Pair:
    """The two sides of one question."""

    floor: Side = field(default_factory=Side)
    node: Side = field(default_factory=Side)

    @property
    def ratio(self) -> float:
        return self.node.middle / self.floor.middle

    @property
    def ratios(self) -> list[float]:
        return [ours / bare for bare, ours in zip(self.floor.by_block, self.node.by_block, strict=True)]


class Generator:
    """The client of both sides: one nats-py connection in this process."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.stream = client.jetstream(publish_async_max_pending=PUBLISHED_AT_ONCE)
        self._ids = (f"bench-{time.time_ns()}-{number}" for number in itertools.count())

    async def warm(self) -> None:
        """The first event may have to wait for an environment; then until the workers that the throughput needs are there."""
        deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=measure.BUILD_S)
        await self.client.request(INVOKE, BODY, timeout=measure.BUILD_S, headers={"Faas-Deadline": deadline.isoformat()})
        await self.requests_per_s(INVOKE, in_flight=32, seconds=WARM_S)
        await self.requests_per_s(floor.REQUESTS, in_flight=32, seconds=WARM_S)

    async def request_latencies(self, subject: str, seconds: float) -> list[float]:
        """One request at a time."""
        samples = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            reply = await self.client.request(subject, BODY, timeout=10)
            samples.append(time.perf_counter() - began)
            _check(reply, subject)
        return samples

    async def durable_latencies(self, subject: str, outcomes: str, seconds: float, *, with_id: bool) -> list[float]:
        """One event at a time: from its publish until a subscriber hears the outcome."""
        heard: asyncio.Queue[tuple[float, Msg]] = asyncio.Queue()

        async def hear(message: Msg) -> None:
            heard.put_nowait((time.perf_counter(), message))

        subscription = await self.client.subscribe(f"{outcomes}.*", cb=hear)
        await self.stream.account_info()  # a fence: the subscription is there
        samples = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            event_id = next(self._ids) if with_id else ""
            ack = await self.stream.publish(subject, BODY, headers={"Nats-Msg-Id": event_id} if with_id else None)
            ended, message = await asyncio.wait_for(heard.get(), 10)
            samples.append(ended - began)
            _check(message, subject)
            _check_pair(message, event_id or f"{ack.seq}.", ack.seq)
        await subscription.unsubscribe()
        return samples

    async def requests_per_s(self, subject: str, *, in_flight: int, seconds: float) -> float:
        began = time.perf_counter()

        async def one_after_the_other() -> int:
            done = 0
            while time.perf_counter() - began < seconds:
                _check(await self.client.request(subject, BODY, timeout=10), subject)
                done += 1
            return done

        done = sum(await asyncio.gather(*(one_after_the_other() for _ in range(in_flight))))
        return done / (time.perf_counter() - began)

    async def events_per_s(self, subject: str, outcomes: str, events: int) -> float:
        """From the first publish until the stream holds as many outcomes more; asked for every 10 ms, at most 1 % of a block."""
        before = (await self.stream.stream_info(outcomes)).state.last_seq
        began = time.perf_counter()
        acks = [await self.stream.publish_async(subject, BODY) for _ in range(events)]
        await asyncio.gather(*acks)
        while (await self.stream.stream_info(outcomes)).state.last_seq < before + events:
            if time.perf_counter() - began > 120:
                raise RuntimeError(f"{events} events of {subject} had no outcome after 120 s")
            await asyncio.sleep(0.01)
        return events / (time.perf_counter() - began)


def _check(message: Msg, subject: str) -> None:
    """A failure that is fast is no figure."""
    outcome = (message.headers or {}).get("Faas-Outcome", "none")
    if outcome != ("none" if subject.startswith("floor.") else "succeeded"):
        raise RuntimeError(f"{subject}: {outcome}: {message.data[:300]!r}")


def _check_pair(outcome: Msg, event_id: str, sequence: int) -> None:
    """An outcome of another event would make a latency of nothing: the node's names the event, the floor's the place in the stream."""
    said = (outcome.headers or {}).get("Faas-Event-Id", "")
    if (said and not said.startswith(event_id)) or (not said and not outcome.subject.endswith(f".{sequence}")):
        raise RuntimeError(f"{outcome.subject} is the outcome of {said or 'another event'}, not of {event_id} at {sequence}")


Block = Callable[[], Awaitable[list[float]]]


async def alternate(pairs: dict[str, tuple[Block, Block]], rounds: int) -> dict[str, Pair]:
    """Floor and node in turn, all kinds in every round."""
    found = {kind: Pair() for kind in pairs}
    for _ in range(rounds):
        for kind, (bare, ours) in pairs.items():
            await found[kind].floor.add(bare())
            await found[kind].node.add(ours())
    return found


def latency_blocks(load: Generator, seconds: float) -> dict[str, tuple[Block, Block]]:
    def durable(*, with_id: bool) -> tuple[Block, Block]:
        return (
            lambda: load.durable_latencies(floor.EVENT, floor.OUTCOME, seconds, with_id=with_id),
            lambda: load.durable_latencies(EVENT, OUTCOME, seconds, with_id=with_id),
        )

    return {
        "synchronous": (lambda: load.request_latencies(floor.REQUESTS, seconds), lambda: load.request_latencies(INVOKE, seconds)),
        "durable": durable(with_id=False),
        "durable, Nats-Msg-Id": durable(with_id=True),
    }


def rate_blocks(load: Generator, settings: argparse.Namespace) -> dict[str, tuple[Block, Block]]:
    async def requests(subject: str) -> list[float]:
        return [await load.requests_per_s(subject, in_flight=settings.in_flight, seconds=settings.seconds)]

    async def events(subject: str, outcomes: str) -> list[float]:
        return [await load.events_per_s(subject, outcomes, settings.events)]

    return {
        "synchronous": (lambda: requests(floor.REQUESTS), lambda: requests(INVOKE)),
        "durable": (lambda: events(floor.EVENT, floor.OUTCOMES), lambda: events(EVENT, "FAAS_OUTCOMES")),
    }


async def compare(url: str, settings: argparse.Namespace) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """Latencies and rates by kind."""
    client = await nats.connect(url)
    try:
        load = Generator(client)
        await load.warm()
        latencies = await alternate(latency_blocks(load, settings.seconds), settings.rounds)
        return latencies, await alternate(rate_blocks(load, settings), settings.rounds)
    finally:
        await client.close()


def rows_of(sync: str, latencies: dict[str, Pair], rates: dict[str, Pair], settings: argparse.Namespace) -> list[dict[str, Figure]]:
    rows: list[dict[str, Figure]] = []
    for kind, both in latencies.items():
        for name, side in (("floor", both.floor), ("node", both.node)):
            rows.append({"what": f"{kind}, {name}", "sync": sync, **measure.spread_ms(side.values), "others_cores": side.strangers})
        rows[-1] |= {"ratio": both.ratio, "by_round": f"{min(both.ratios):.2f}-{max(both.ratios):.2f}"}
    for kind, both in rates.items():
        what = f"{kind}, {settings.in_flight} in flight" if kind == "synchronous" else f"{kind}, {settings.events} events"
        for name, side in (("floor", both.floor), ("node", both.node)):
            by_round = f"{min(side.values):,.0f}-{max(side.values):,.0f}"
            rows.append(
                {"what": f"{what}, {name}", "sync": sync, "per_s": side.middle, "others_cores": side.strangers, "by_round": by_round}
            )
        rows[-1]["ratio"] = 1 / both.ratio
    return rows


def main() -> None:
    settings = measure.arguments(__doc__ or "", seconds=0.4, rounds=6, events=3000, in_flight=32)
    rows: list[dict[str, Figure]] = []
    goals: list[Goal] = []
    for sync in ("default", "always"):
        with ExitStack() as stack:
            functions, state = stack.enter_context(measure.scratch(settings.state))
            shutil.copytree(HELLO, functions / "hello")
            node = stack.enter_context(measure.node(functions, state=state, config=f'[bus]\nsync = "{sync}"\n'))
            for side in ("responder", "durable"):
                stack.enter_context(measure.python(Path(floor.__file__), side, node.url))
            latencies, rates = uvloop.run(compare(node.url, settings))
        rows += rows_of(sync, latencies, rates, settings)
        if sync == "default":
            goals = [
                Goal("synchronous p50 / floor", latencies["synchronous"].ratio, 1.6),
                Goal("durable p50 / floor", latencies["durable"].ratio, 1.8),
                Goal("synchronous, 32 in flight", rates["synchronous"].node.middle, 4000, at_most=False, unit="/s"),
                Goal("durable", rates["durable"].node.middle, 2500, at_most=False, unit="/s"),
            ]
    measure.report("Dispatch: a warm `hello` through a node, beside the bus alone", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
