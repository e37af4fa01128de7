"""What does a node cost that does nothing? Processor time of an idle node with ten functions, each of which has run once.

From /proc/PID/stat (user and system), over all its processes, the node's own, and the nats-server's.
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
    before = {pid: measure.cpu_s(pid) for pid in members}
    began = time.monotonic()
    time.sleep(seconds)
    after = {pid: max(measure.cpu_s(pid), before[pid]) for pid in members}
    elapsed = time.monotonic() - began
    return [
        {"what": what, "processes": len(pids), "percent_of_a_core": 100 * sum(after[pid] - before[pid] for pid in pids) / elapsed}
        for what, pids in groups.items()
    ]


def measured(settings: argparse.Namespace) -> list[dict[str, Figure]]:
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        names = [f"idle-{number}" for number in range(settings.functions)]
        for name in names:
            measure.function(functions, name, handler=HANDLER, spec=f'[[trigger]]\nsubject = "bench.{name}"\n')
        node = stack.enter_context(measure.node(functions, state=state))
        uvloop.run(run_each_once(node.url, names))
        return share(node, settings.seconds)


def main() -> None:
    settings = measure.arguments(__doc__ or "", seconds=20.0, functions=10)
    rows = measured(settings)
    goals = [Goal("an idle node, all its processes", float(rows[0]["percent_of_a_core"]), 1.0, unit=" % of a core")]
    measure.report(f"Idle: a node with {settings.functions} functions that does nothing", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
