"""Leaders killed and cut off, and nodes cut off from a cluster of three: F10 and F11. Seeded, bounded by how long is waited.

The cuts are made in network namespaces (network.py): nobody is told, packets are lost. Where none may be made the tests skip and say why.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from clustered import ClusteredWorld, PartedWorld
from network import NoNetwork
from test_deaths import check
from world import ACK_WAIT_S

CUT_OFF_S = 16.0
"""Longer than a client takes to notice that nobody answers (15 s): from then on it tries to connect again."""
HANGS = """import os, time
def handle(event: str, ctx):
    mine = os.path.join(event, os.urandom(4).hex())
    first = not os.listdir(event)
    with open(mine, "a", buffering=1) as file:
        while first:
            file.write("x\\n")
            time.sleep(0.05)
    return "second"
"""

T = TypeVar("T")

pytestmark = pytest.mark.timeout(170)


@pytest.fixture
async def clustered(tmp_path: Path) -> AsyncIterator[ClusteredWorld]:
    async with ClusteredWorld(tmp_path, seed=10) as made:
        yield made
    assert made.left == []  # I4


@pytest.fixture
async def parted(tmp_path: Path) -> AsyncIterator[PartedWorld]:
    made = PartedWorld(tmp_path, seed=11, node_names=("a", "b"))
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(made)
        except NoNetwork as reason:
            pytest.skip(f"no network of our own: {reason}")
        yield made
    assert made.left == []  # I4


@pytest.mark.parametrize("stream", ["FAAS_EVENTS", "FAAS_OUTCOMES"])
async def test_f10_a_killed_leader_of_three_servers_costs_no_event(clustered: ClusteredWorld, stream: str) -> None:
    """What a cluster has acknowledged it keeps; publishers and nodes go on with the next leader."""
    await clustered.node("a")
    await clustered.node("b")
    publishing = asyncio.ensure_future(clustered.publish(60))
    await clustered.under_way(20)
    leader = await clustered.cluster.leader(stream)
    await clustered.cluster.servers[leader].end()
    await clustered.under_way(10)
    await clustered.cluster.start(leader)
    await publishing

    await check(clustered, within_s=100.0)


async def test_f11_a_leader_that_is_cut_off_costs_no_event(parted: PartedWorld) -> None:
    """It goes on believing that it leads; what it takes alone is never acknowledged, and what it held is there when it is back."""
    await parted.node("a")
    await parted.node("b")
    publishing = asyncio.ensure_future(parted.publish(60))
    await parted.under_way(20)
    leader = await parted.cluster.leader("FAAS_EVENTS")
    parted.network.cut(leader)
    await asyncio.sleep(CUT_OFF_S)
    parted.network.mend(leader)
    await publishing

    await check(parted, within_s=100.0)


@pytest.mark.parametrize("longer_s", [0.0, CUT_OFF_S], ids=["unnoticed", "noticed"])
async def test_f11_a_node_that_is_cut_off_kills_what_it_ran_and_publishes_nothing(
    parted: PartedWorld, tmp_path: Path, longer_s: float
) -> None:
    """To the others it is dead, and they run what it had; what it says after its lease would act on their deliveries (F06).

    Cut off for a short while its connection never breaks, and all that it had sent arrives late.
    """
    seen = tmp_path / "seen"
    seen.mkdir()
    parted.function("hangs", HANGS)
    await parted.node("a")
    await parted.stream.publish("chaos.hangs", str(seen).encode(), headers={"Nats-Msg-Id": "hangs"})
    parted.accepted["hangs"] = ("hangs", 0)
    begun = await until(lambda: next(seen.iterdir(), None))
    await parted.node("b")
    publishing = asyncio.ensure_future(parted.publish(60))
    await parted.under_way(20)
    parted.network.cut("a")
    await until(lambda: "hangs" in parted.outcomes)
    async with asyncio.timeout(3 * ACK_WAIT_S):
        while await grows(begun):
            pass
    size = begun.stat().st_size
    await asyncio.sleep(longer_s)
    parted.network.mend("a")
    await publishing

    await check(parted, within_s=100.0)
    assert begun.stat().st_size == size
    assert "delivery.lost" in (parted.nodes["a"].state / "node.log").read_text()
    records = [record for _, body in await parted.read("FAAS_USAGE", "faas.usage.default.hangs") for record in json.loads(body)]
    assert {record["node"] for record in records} == {"b"}


async def until(what: Callable[[], T]) -> T:
    """What a function returns, once it is true."""
    async with asyncio.timeout(30):
        while True:
            if found := what():
                return found
            await asyncio.sleep(0.05)


async def grows(file: Path) -> bool:
    """Whether somebody still writes to it, twenty times a second."""
    before = file.stat().st_size
    await asyncio.sleep(0.5)
    return file.stat().st_size != before
