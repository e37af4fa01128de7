"""What do bodies above the bus limit cost? Time of a call with 64 MiB in and out, and the peak memory of the node while some of them run at once.

The peak is VmHWM of the node's own process, reset before each row. The floor is nats-py's own object store moving the same bytes
as often: two puts and two gets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from contextlib import ExitStack
from pathlib import Path

import measure
import nats
import uvloop
from measure import Figure, Goal

import faas

MIB = 2**20
HANDLER = "def handle(event: bytes) -> bytes:\n    return event[::-1]\n"
SPEC = '[limits]\nmemory = "1GiB"\ntimeout = "60s"\n[scale]\nmax_workers = 4\n'


def peak_bytes(pid: int) -> int:
    """The largest resident size since the last reset."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def synchronous(client: faas.client.Client, body: bytes) -> None:
    if await client.invoke("large", body, timeout="60s") != body[::-1]:
        raise RuntimeError("another body came back")


async def durable(client: faas.client.Client, body: bytes) -> None:
    reply = await client.outcome(await client.submit("large", body))
    if reply.result != body[::-1]:
        raise RuntimeError("another body came back")


async def rows_of(node: measure.Node, mib: int, rounds: int) -> list[dict[str, Figure]]:
    body = os.urandom(MIB) * mib
    rows: list[dict[str, Figure]] = []
    async with faas.connect(node.url) as client:
        await client.invoke("large", b"warm")
        base = measure.resident_bytes(node.pid)
        for what, call in (("synchronous", synchronous), ("durable", durable)):
            for at_once in (1, 4):
                reset_peak(node.pid)
                before = measure.cpu_s(node.pid)
                began = time.monotonic()
                for _ in range(rounds):
                    await asyncio.gather(*(call(client, body) for _ in range(at_once)))
                seconds = (time.monotonic() - began) / (rounds * at_once)
                rows.append(
                    {
                        "what": what,
                        "mib": mib,
                        "at_once": at_once,
                        "seconds_a_call": seconds,
                        "node_cpu_s_a_call": (measure.cpu_s(node.pid) - before) / (rounds * at_once),
                        "node_before_mib": base / MIB,
                        "node_peak_mib": peak_bytes(node.pid) / MIB,
                    }
                )
    raw = await nats.connect(node.url)
    store = await raw.jetstream(timeout=30).object_store("FAAS_PAYLOADS")
    began = time.monotonic()
    for name in ("floor-in", "floor-out"):
        await store.put(name, body)
        await store.get(name)
    rows.append({"what": "floor: nats-py's own put and get, twice", "mib": mib, "at_once": 1, "seconds_a_call": time.monotonic() - began})
    await raw.close()
    return rows


def measured(settings: argparse.Namespace) -> list[dict[str, Figure]]:
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        measure.function(functions, "large", handler=HANDLER, spec=SPEC)
        node = stack.enter_context(measure.node(functions, state=state, config='[bus]\nsync = "default"\n'))
        return uvloop.run(rows_of(node, int(settings.mib), int(settings.rounds)))


def main() -> None:
    settings = measure.arguments(__doc__ or "", mib=64, rounds=2)
    rows = measured(settings)
    above = max(float(row["node_peak_mib"]) - float(row["node_before_mib"]) for row in rows if "node_peak_mib" in row)
    goals = [Goal("peak memory of the node above what it had, four of them at once", above, 64.0, unit=" MiB")]
    measure.report(f"Large bodies: {settings.mib} MiB in and out", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
