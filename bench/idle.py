"""What does a node cost that does nothing? Processor time of an idle node with ten functions (`--functions 1000`: the goal is 2 %), each of which has run once.

In percent of one core over all its processes, the node's own, and the nats-server's: from /proc/PID/stat, whose tick of
10 ms hides a node that wakes briefly, and from the scheduler's nanoseconds, which count for the goal where they are more.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import time
from contextlib import ExitStack

import measure
import nats
import uvloop
from measure import Figure, Goal

HANDLER = "def handle(event):\n    return event\n"
SETTLE_S = 3.0
FEW, FEW_PERCENT, MANY_PERCENT = 100, 1.0, 2.0
"""Up to so many functions the goal is the first bound, beyond it the second."""


async def run_each_once(url: str, names: list[str]) -> None:
    """So that workers, consumers and connections are those of a node in use."""
    deadline = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=measure.BUILD_S)).isoformat()
    client = await nats.connect(url)
    for name in names:
        reply = await client.request(f"faas.invoke.default.{name}", b"1", timeout=measure.BUILD_S, headers={"Faas-Deadline": deadline})
        if (reply.headers or {}).get("Faas-Outcome") != "succeeded":
            raise RuntimeError(f"{name}: {reply.headers}: {reply.data[:300]!r}")
    await client.close()
    await asyncio.sleep(SETTLE_S)


def share(node: measure.Node, seconds: float) -> list[dict[str, Figure]]:
    """Processor time of each group of processes in percent of one core."""
    members = measure.family(node.pid)
    servers = [pid for pid in members if measure.command_name(pid) == "nats-server"]
    groups = {
        "all processes": members,
        "the node itself": [node.pid],
        "nats-server": servers,
        "zygotes and workers": [pid for pid in members if pid != node.pid and pid not in servers],
    }
    before = {pid: (measure.cpu_s(pid), measure.scheduled_s(pid)) for pid in members}
    began = time.monotonic()
    time.sleep(seconds)
    used = {pid: (measure.cpu_s(pid) - before[pid][0], measure.scheduled_s(pid) - before[pid][1]) for pid in members}
    elapsed = time.monotonic() - began
    if gone := set(members) - set(measure.family(node.pid)):
        raise RuntimeError(f"{len(gone)} processes ended while they were measured: the node was not idle")
    return [
        {
            "what": what,
            "processes": len(pids),
            "stat_percent": 100 * sum(used[pid][0] for pid in pids) / elapsed,
            "scheduler_percent": 100 * sum(used[pid][1] for pid in pids) / elapsed,
        }
        for what, pids in groups.items()
    ]


def measured(settings: argparse.Namespace) -> list[dict[str, Figure]]:
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        names = [f"idle-{number}" for number in range(settings.functions)]
        for name in names:
            measure.function(functions, name, handler=HANDLER, spec=f'[[trigger]]\nsubject = "bench.{name}"\n')
        node = stack.enter_context(measure.node(functions, state=state, options=("--environments", "current")))
        uvloop.run(run_each_once(node.url, names))
        return share(node, settings.seconds)


def main() -> None:
    settings = measure.arguments(__doc__ or "", seconds=20.0, functions=10)
    rows = measured(settings)
    goals = [
        Goal(
            "an idle node, all its processes",
            max(float(rows[0]["stat_percent"]), float(rows[0]["scheduler_percent"])),
            FEW_PERCENT if settings.functions <= FEW else MANY_PERCENT,
            unit=" % of a core",
        )
    ]
    measure.report(f"Idle: a node with {settings.functions} functions that does nothing", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
