"""Does a node that works for long grow? Memory and descriptors of the node over so many invocations, half of them synchronous, half durable.

The node itself is judged, by two rules that leave room for an allocator's habits: from the first quarter of the run to its
end it grows by less than a tenth and 8 MiB together, by a line through its samples; and at the end it holds at most 16 descriptors more
than then. What its nats-server and its workers take stands beside it: the server keeps some 700 bytes for every retained outcome.
"""

from __future__ import annotations

import asyncio
import os
import time
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass, field

import measure
import nats
import uvloop
from measure import Figure, Goal
from nats.aio.client import Client

HANDLER = "def handle(event, ctx):\n    ctx.log.info('soaked')\n    return event\n"
SPEC = '[[trigger]]\nsubject = "soak.*"\n'
IN_FLIGHT = 16
BATCH = 250
"""Of each kind, between two samples at the earliest."""
SAMPLE_S = 0.5
SETTLED_S = 120
GROWTH_SHARE, GROWTH_BYTES, DESCRIPTORS = 0.1, 8 * 2**20, 16
WARM_SHARE = 0.25
MIB = 2**20


@dataclass(slots=True)
class Samples:
    """Of one process or group: what it held after so many invocations."""

    done: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def slope(self, of: list[int]) -> float:
        """By least squares, a thousand invocations, over what follows the warm part."""
        begin = int(len(self.done) * WARM_SHARE)
        x, y = self.done[begin:], of[begin:]
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        spread = sum((one - mean_x) ** 2 for one in x) or 1.0
        return 1000 * sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True)) / spread

    def row(self, what: str) -> dict[str, Figure]:
        begin = int(len(self.done) * WARM_SHARE)
        return {
            "what": what,
            "first_mib": self.resident_bytes[0] / MIB,
            "warm_mib": self.resident_bytes[begin] / MIB,
            "end_mib": self.resident_bytes[-1] / MIB,
            "slope_kib_per_1000": self.slope(self.resident_bytes) / 1024,
            "first_fds": self.descriptors[0],
            "end_fds": self.descriptors[-1],
            "slope_fds_per_1000": self.slope(self.descriptors),
        }


class Watch:
    """Samples a node while it works."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.groups = {"the node itself": Samples(), "nats-server": Samples(), "zygotes and workers": Samples()}

    def sample(self, done: int) -> None:
        members = measure.family(self._pid)
        servers = [pid for pid in members if measure.command_name(pid) == "nats-server"]
        others = [pid for pid in members if pid != self._pid and pid not in servers]
        for samples, pids in zip(self.groups.values(), ([self._pid], servers, others), strict=True):
            samples.done.append(done)
            samples.resident_bytes.append(sum(_or_0(measure.resident_bytes, pid) for pid in pids))
            samples.descriptors.append(sum(_or_0(_descriptors, pid) for pid in pids))


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _or_0(read: object, pid: int) -> int:
    try:
        return int(read(pid))  # type: ignore[operator]
    except OSError:
        return 0


async def requests(client: Client, count: int) -> None:
    left = iter(range(count))

    async def one_after_the_other() -> None:
        for number in left:
            reply = await client.request("faas.invoke.default.soak", b"%d" % number, timeout=60)
            if (reply.headers or {}).get("Faas-Outcome") != "succeeded":
                raise RuntimeError(f"{reply.headers}: {reply.data[:300]!r}")

    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))


async def events(client: Client, count: int, *, first: int) -> None:
    """Every other one with an id of its own, for which the node looks up whether it has run."""
    stream = client.jetstream()
    before = (await stream.stream_info("FAAS_OUTCOMES")).state.last_seq
    acks = [
        await stream.publish_async("soak.event", b"1", headers={"Nats-Msg-Id": f"soak-{first + number}"} if number % 2 else None)
        for number in range(count)
    ]
    await asyncio.gather(*acks)
    began = time.monotonic()
    while (await stream.stream_info("FAAS_OUTCOMES")).state.last_seq < before + count:
        if time.monotonic() - began > SETTLED_S:
            raise RuntimeError(f"{count} events had no outcome after {SETTLED_S:g} s")
        await asyncio.sleep(0.01)


async def soak(node: measure.Node, settings: Namespace) -> tuple[Watch, float]:
    """What was sampled, and how long it took."""
    client = await nats.connect(node.url)
    watch = Watch(node.pid)
    await requests(client, IN_FLIGHT)  # the first one may wait for an environment
    done, sampled, began = 0, 0.0, time.monotonic()
    while done < settings.invocations:
        await asyncio.gather(requests(client, BATCH), events(client, BATCH, first=done))
        done += 2 * BATCH
        if time.monotonic() - sampled >= SAMPLE_S:
            sampled = time.monotonic()
            watch.sample(done)
    elapsed = time.monotonic() - began
    watch.sample(done)
    await client.close()
    return watch, elapsed


def main() -> None:
    settings = measure.arguments(__doc__ or "", invocations=100_000)
    with ExitStack() as stack:
        functions, state = stack.enter_context(measure.scratch(settings.state))
        measure.function(functions, "soak", handler=HANDLER, spec=SPEC)
        node = stack.enter_context(
            measure.node(functions, state=state, config='[bus]\nsync = "default"\n', options=("--environments", "current"))
        )
        watch, elapsed = uvloop.run(soak(node, settings))
    rows = [samples.row(name) for name, samples in watch.groups.items()]
    rows[0]["per_s"] = settings.invocations / elapsed
    judged = watch.groups["the node itself"]
    begin = int(len(judged.done) * WARM_SHARE)
    grown = judged.slope(judged.resident_bytes) * (judged.done[-1] - judged.done[begin]) / 1000
    bound = GROWTH_SHARE * judged.resident_bytes[begin] + GROWTH_BYTES
    goals = [
        Goal("the node's memory from a quarter of the run to its end", grown / MIB, bound / MIB, unit=" MiB"),
        Goal("the node's descriptors, the same", judged.descriptors[-1] - judged.descriptors[begin], DESCRIPTORS),
    ]
    measure.report(f"Soak: {settings.invocations:,} invocations, half synchronous, half durable", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
