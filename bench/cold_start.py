"""How long until a new function of profile `ai` has done its first torch operation, and what keeping that ready costs in memory?

Every sample is a function that has never run: its name is new, so nothing of it is loaded. First one at a time, each
after the node has its spare again; in turn with them a fresh interpreter of the same environment, bytecode compiled,
does the same. Then pairs at once, of which one finds no spare and is forked. Times are of one clock: `time.time()` when the
event is sent, and the handler's own after its first operation.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import measure
import nats
import uvloop
from measure import Figure, Goal
from nats.aio.client import Client

HANDLER = """import time

import torch


def handle(event):
    torch.ones(64, 64) @ torch.ones(64, 64)
    return time.time()
"""
FRESH = "import time, torch; torch.ones(64, 64) @ torch.ones(64, 64); print(time.time())"
SPEC = 'runtime = "ai"\n[limits]\nmemory = "1GiB"\n[scale]\nkeep_alive = "5s"\n'
SETTLED_S = 0.5
SETTLE_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One cold start: how the worker was made, and seconds to the first operation and to the reply."""

    start: str
    operation_s: float
    reply_s: float
    load_us: int


@dataclass(slots=True)
class Figures:
    """Everything that one run found."""

    alone: list[Sample] = field(default_factory=list)
    paired: list[Sample] = field(default_factory=list)
    fresh_s: list[float] = field(default_factory=list)
    spare_bytes: list[int] = field(default_factory=list)
    node_bytes: int = 0

    def of(self, start: str) -> list[Sample]:
        return [sample for sample in self.alone + self.paired if sample.start == start]


async def invoke(client: Client, name: str, *, wait_s: float = 60) -> Sample:
    deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=wait_s)
    began = time.time()
    reply = await client.request(f"faas.invoke.default.{name}", b"null", timeout=wait_s, headers={"Faas-Deadline": deadline.isoformat()})
    ended = time.time()
    headers = reply.headers or {}
    if headers.get("Faas-Outcome") != "succeeded":
        raise RuntimeError(f"{name}: {headers}: {reply.data[:500]!r}")
    return Sample(headers.get("Faas-Start", ""), json.loads(reply.data) - began, ended - began, int(headers.get("Faas-Load-Us", 0)))


async def settle(node: measure.Node) -> None:
    """Until nothing has started, ended or computed below the node for half a second: the next spare is ready, warmed up and waiting."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    before: tuple[object, float] = (None, 0.0)
    while time.monotonic() < deadline:
        members = [pid for pid in measure.family(node.pid) if pid != node.pid]
        now = (members, sum(map(measure.cpu_s, members)))
        if now[0] == before[0] and now[1] - before[1] <= 0.01:  # one tick of the clock: a heartbeat
            return
        before = now
        await asyncio.sleep(SETTLED_S)


def fresh_interpreter(python: Path) -> float:
    """Seconds from starting an interpreter of the environment until the same operation is done in it."""
    began = time.time()
    done = subprocess.run([python, "-c", FRESH], capture_output=True, text=True, check=True)
    return float(done.stdout) - began


def spares(node: measure.Node) -> list[int]:
    """The processes of the template's family that have torch mapped and no child: while no function has run, those are spares."""
    members = measure.family(node.pid)
    parents = {pid for pid in members if len(measure.family(pid)) > 1}
    return [pid for pid in members if pid not in parents and "libtorch" in Path(f"/proc/{pid}/maps").read_text()]


def environment_python(node: measure.Node) -> Path:
    """The interpreter of the `ai` environment: the one that a process with torch mapped runs."""
    waiting = spares(node)
    if not waiting:
        raise RuntimeError("no spare of profile ai is waiting: nothing with torch mapped below the node")
    return Path(Path(f"/proc/{waiting[0]}/cmdline").read_bytes().split(b"\0")[0].decode())


async def run(node: measure.Node, settings: argparse.Namespace) -> Figures:
    figures = Figures()
    client = await nats.connect(node.url)
    try:
        await invoke(client, "first", wait_s=measure.BUILD_S)  # the environment, the template: not what is asked here
        await asyncio.sleep(6)  # its worker's keep-alive passes, so that what is left are spares
        await settle(node)
        figures.node_bytes = measure.resident_bytes(node.pid)
        figures.spare_bytes = [measure.private_bytes(pid) for pid in spares(node)]
        python = environment_python(node)
        fresh_interpreter(python)  # fills the page cache
        for number in range(settings.samples):
            await settle(node)
            figures.alone.append(await invoke(client, f"alone-{number}"))
            if number % 3 == 0:
                figures.fresh_s.append(await asyncio.to_thread(fresh_interpreter, python))
        for number in range(settings.pairs):
            await settle(node)
            figures.paired += await asyncio.gather(*(invoke(client, f"pair-{number}-{side}") for side in "ab"))
    finally:
        await client.close()
    return figures


def rows_of(figures: Figures) -> list[dict[str, Figure]]:
    rows: list[dict[str, Figure]] = []
    for when, samples in (("alone", figures.alone), ("two at once", figures.paired)):
        for start in sorted({sample.start for sample in samples}):
            chosen = [sample for sample in samples if sample.start == start]
            rows.append({"what": f"{start}, {when}: first operation", **measure.spread_ms([sample.operation_s for sample in chosen])})
            rows.append({"what": f"{start}, {when}: reply", **measure.spread_ms([sample.reply_s for sample in chosen])})
            rows.append({"what": f"{start}, {when}: Faas-Load-Us", **measure.spread_ms([sample.load_us / 1e6 for sample in chosen])})
    rows.append({"what": "fresh interpreter: first operation", **measure.spread_ms(figures.fresh_s)})
    rows.append({"what": "idle spare, private memory", "n": len(figures.spare_bytes), "MB": middle(figures.spare_bytes) / 1e6})
    rows.append({"what": "node, resident memory", "n": 1, "MB": figures.node_bytes / 1e6})
    return rows


def middle(values: list[float] | list[int]) -> float:
    return measure.percentile(values, 0.5)


def main() -> None:
    settings = measure.arguments(__doc__ or "", samples=15, pairs=6)
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        names = [f"alone-{number}" for number in range(settings.samples)]
        names += [f"pair-{number}-{side}" for number in range(settings.pairs) for side in "ab"]
        for name in ("first", *names):
            measure.function(functions, name, handler=HANDLER, spec=SPEC)
        node = stack.enter_context(measure.node(functions, state=state))
        figures = uvloop.run(run(node, settings))
    spare, fork = (middle([sample.operation_s for sample in figures.of(start)]) for start in ("spare", "fork"))
    goals = [
        Goal("spare: event to first operation, p50", 1000 * spare, 20, unit=" ms"),
        Goal("fork: event to first operation, p50", 1000 * fork, 40, unit=" ms"),
        Goal("fresh interpreter / spare", middle(figures.fresh_s) / spare, 60, at_most=False),
        Goal("private memory of an idle spare", middle(figures.spare_bytes) / 1e6, 8, unit=" MB"),
        Goal("resident memory of the node", figures.node_bytes / 1e6, 120, unit=" MB"),
    ]
    measure.report("Cold start: a new function of profile `ai` to its first torch operation", rows_of(figures), goals, settings=settings)


if __name__ == "__main__":
    main()
