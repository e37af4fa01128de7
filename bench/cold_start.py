"""How long until a new function of profile `ai` has done its first torch operation, and what keeping that ready costs in memory?

Every sample is a function that has never run on its node, so nothing of it is loaded. Three ways: one alone, after the node
has its spare again; two at once, of which one finds no spare; and one right after another, before the next spare is ready.
`Faas-Start` says how the worker was made, and the figures are split by it. In turn with them a fresh interpreter of the same
environment, bytecode compiled, does the same. Times are of one clock: `time.time()` when the event is sent, and the handler's
own after its first operation.
"""

from __future__ import annotations

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
ALONE = ("alone-0", "alone-1")
TOGETHER = ("together-0", "together-1")
AFTER = ("after-0", "after-1")
"""The functions of one round, each new to its node. With the generic sandbox they are seven: at the profile's `max` of eight, a new
function first ends another's sandbox, and a fork would be timed with that."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One cold start: how the worker was made, and seconds to the first operation and to the reply."""

    start: str
    operation_s: float
    reply_s: float
    load_us: int


@dataclass(slots=True)
class Figures:
    """Everything that the rounds found: samples by the way in which they were taken."""

    samples: dict[str, list[Sample]] = field(default_factory=lambda: {"alone": [], "two at once": [], "right after another": []})
    fresh_s: list[float] = field(default_factory=list)
    spare_clean_bytes: list[int] = field(default_factory=list)
    spare_dirty_bytes: list[int] = field(default_factory=list)
    node_bytes: list[int] = field(default_factory=list)

    def of(self, start: str, way: str) -> list[float]:
        """Seconds to the first operation. Never pooled over the ways: their mix would decide the figure."""
        return [sample.operation_s for sample in self.samples[way] if sample.start == start]


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


def leaves_with_torch(node: measure.Node) -> list[int]:
    leaves = [pid for pid in measure.family(node.pid) if len(measure.family(pid)) == 1]
    return [pid for pid in leaves if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]


def interpreter_of(pid: int) -> Path:
    return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())


async def first_spare(node: measure.Node) -> int:
    """The one spare of a node on which no function has run: the process without a child that has torch mapped. Its environment may have to be built."""
    deadline = time.monotonic() + measure.BUILD_S
    while time.monotonic() < deadline:
        await settle(node)
        waiting = leaves_with_torch(node)
        if len(waiting) == 1:
            return waiting[0]
        await asyncio.sleep(SETTLED_S)
    raise RuntimeError("no spare of profile ai is waiting: nothing with torch mapped below the node")


async def play_round(node: measure.Node, figures: Figures) -> None:
    """One node from its start: memory first, then each of its functions once."""
    client = await nats.connect(node.url)
    try:
        spare = await first_spare(node)
        figures.node_bytes.append(measure.resident_bytes(node.pid))
        clean, dirty = measure.private_bytes(spare)
        figures.spare_clean_bytes.append(clean)
        figures.spare_dirty_bytes.append(dirty)
        python = interpreter_of(spare)
        if not figures.fresh_s:
            fresh_interpreter(python)  # fills the page cache; not counted
        for name in ALONE:
            await settle(node)
            figures.samples["alone"].append(await invoke(client, name))
        await settle(node)
        figures.samples["two at once"] += await asyncio.gather(*(invoke(client, name) for name in TOGETHER))
        await settle(node)
        figures.samples["right after another"] += [await invoke(client, name) for name in AFTER]
        await settle(node)
        figures.fresh_s.append(await asyncio.to_thread(fresh_interpreter, python))
    finally:
        await client.close()


def rows_of(figures: Figures) -> list[dict[str, Figure]]:
    rows: list[dict[str, Figure]] = []
    for way, samples in figures.samples.items():
        for start in sorted({sample.start for sample in samples}):
            chosen = [sample for sample in samples if sample.start == start]
            for what, values in (
                ("first operation", [sample.operation_s for sample in chosen]),
                ("reply", [sample.reply_s for sample in chosen]),
                ("Faas-Load-Us", [sample.load_us / 1e6 for sample in chosen]),
            ):
                rows.append({"what": f"{start}, {way}: {what}", **measure.spread_ms(values)})
    rows.append({"what": "fresh interpreter: first operation", **measure.spread_ms(figures.fresh_s)})
    for what, sizes in (
        ("idle spare, private clean (files')", figures.spare_clean_bytes),
        ("idle spare, private dirty", figures.spare_dirty_bytes),
        ("node, resident", figures.node_bytes),
    ):
        rows.append({"what": what, "n": len(sizes), "MB": middle(sizes) / 1e6})
    return rows


def middle(values: list[float] | list[int]) -> float:
    return measure.percentile(values, 0.5)


def main() -> None:
    settings = measure.arguments(__doc__ or "", rounds=8)
    figures = Figures()
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        for name in (*ALONE, *TOGETHER, *AFTER):
            measure.function(functions, name, handler=HANDLER, spec=SPEC)
        for _ in range(settings.rounds):
            with measure.node(functions, state=state) as node:
                uvloop.run(play_round(node, figures))
    spare, fresh = middle(figures.of("spare", "alone")), middle(figures.fresh_s)
    private = middle(figures.spare_clean_bytes) + middle(figures.spare_dirty_bytes)
    goals = [
        Goal("spare: event to first operation, p50", 1000 * spare, 20, unit=" ms"),
        *(
            Goal(f"fork, {way}: event to first operation, p50", 1000 * middle(figures.of("fork", way)), 40, unit=" ms")
            for way in ("two at once", "right after another")
        ),
        Goal("fresh interpreter / spare", fresh / spare, 60, at_most=False),
        Goal("private memory of an idle spare, clean and dirty", private / 1e6, 8, unit=" MB"),
        Goal("resident memory of the node", middle(figures.node_bytes) / 1e6, 120, unit=" MB"),
    ]
    measure.report("Cold start: a new function of profile `ai` to its first torch operation", rows_of(figures), goals, settings=settings)


if __name__ == "__main__":
    main()
