"""Does a node with many functions answer as fast as one with few? Warm `hello` beside nine idle functions, and beside 999.

Both nodes run at once, each on a nats-server of its own, and blocks of them alternate, so that drift of the host hits both. What
the many cost while nothing happens is the question of `idle.py --functions 1000`.
"""

from __future__ import annotations

import datetime
import shutil
import time
from argparse import Namespace
from contextlib import AsyncExitStack, ExitStack

import dispatch
import measure
import nats
import uvloop
from measure import Figure, Goal

HANDLER = "def handle(event):\n    return event\n"
FEW = 10
FLAT = 1.2
WARM_S = 0.5


async def connected(stack: AsyncExitStack, url: str) -> dispatch.Generator:
    """A generator whose `hello` is warm."""
    client = await nats.connect(url)
    stack.push_async_callback(client.close)
    deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=measure.BUILD_S)
    headers = {"Faas-Deadline": deadline.isoformat()}
    await client.request(dispatch.INVOKE, dispatch.BODY, timeout=measure.BUILD_S, headers=headers)
    load = dispatch.Generator(client)
    await load.requests_per_s(dispatch.INVOKE, in_flight=32, seconds=WARM_S)
    return load


async def compare(few: str, many: str, settings: Namespace) -> tuple[dict[str, dispatch.Pair], dict[str, dispatch.Pair]]:
    """Latencies and rates by kind; the node with few functions stands where the floor does elsewhere."""
    async with AsyncExitStack() as stack:
        sides = [await connected(stack, url) for url in (few, many)]

        def latency(side: dispatch.Generator) -> dispatch.Block:
            return lambda: side.request_latencies(dispatch.INVOKE, settings.seconds)

        def durable(side: dispatch.Generator) -> dispatch.Block:
            return lambda: side.durable_latencies(dispatch.EVENT, dispatch.OUTCOME, settings.seconds, with_id=False)

        async def rate(side: dispatch.Generator) -> list[float]:
            return [await side.requests_per_s(dispatch.INVOKE, in_flight=settings.in_flight, seconds=settings.seconds)]

        def rates(side: dispatch.Generator) -> dispatch.Block:
            return lambda: rate(side)

        kinds = {"synchronous": latency, "durable": durable}
        latencies = await dispatch.alternate({kind: (block(sides[0]), block(sides[1])) for kind, block in kinds.items()}, settings.rounds)
        return latencies, await dispatch.alternate({"synchronous": (rates(sides[0]), rates(sides[1]))}, settings.rounds)


def rows_of(latencies: dict[str, dispatch.Pair], rates: dict[str, dispatch.Pair], settings: Namespace) -> list[dict[str, Figure]]:
    rows: list[dict[str, Figure]] = []
    for kind, both in latencies.items():
        for count, side in ((FEW, both.floor), (settings.functions, both.node)):
            rows.append({"what": kind, "functions": count, **measure.spread_ms(side.values), "others_cores": side.strangers})
        rows[-1]["ratio"] = both.ratio
    for kind, both in rates.items():
        for count, side in ((FEW, both.floor), (settings.functions, both.node)):
            what = f"{kind}, {settings.in_flight} in flight"
            rows.append({"what": what, "functions": count, "per_s": side.middle, "others_cores": side.strangers})
        rows[-1]["ratio"] = 1 / both.ratio
    return rows


def main() -> None:
    settings = measure.arguments(__doc__ or "", functions=1000, seconds=0.4, rounds=6, in_flight=32)
    with ExitStack() as stack:
        urls, started = [], []
        for count in (FEW, settings.functions):
            functions, state = stack.enter_context(measure.scratch(None))
            shutil.copytree(dispatch.HELLO, functions / "hello")
            for number in range(count - 1):
                measure.function(functions, f"idle-{number}", handler=HANDLER, spec=f'[[trigger]]\nsubject = "bench.idle-{number}"\n')
            began = time.monotonic()
            config = '[bus]\nsync = "default"\n'
            node = stack.enter_context(measure.node(functions, state=state, config=config, options=("--environments", "current")))
            started.append(time.monotonic() - began)
            urls.append(node.url)
        latencies, rates = uvloop.run(compare(urls[0], urls[1], settings))
    rows = rows_of(latencies, rates, settings)
    rows += [
        {"what": "start of the node", "functions": count, "start_s": took}
        for count, took in zip((FEW, settings.functions), started, strict=True)
    ]
    goals = [Goal(f"{kind} p50 beside a node with {FEW} functions", both.ratio, FLAT, unit="x") for kind, both in latencies.items()]
    goals.append(Goal("synchronous rate, the same", rates["synchronous"].ratio, 1 / FLAT, at_most=False, unit="x"))
    measure.report(
        f"Many: a warm `hello` on a node with {settings.functions:,} functions beside one with {FEW}", rows, goals, settings=settings
    )


if __name__ == "__main__":
    main()
