"""The balance that a node strikes after a fault, against what the publisher knows: accepted = open + settled."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import FUNCTIONS, World

import faas

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, seed=23) as made:
        yield made


def imbalance(world: World, name: str) -> dict[str, float]:
    """What a node says of each function."""
    url = json.loads((world.nodes[name].state / "node.json").read_text())["http"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("faas_conservation_imbalance{")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_an_outcome_in_whose_place_another_is_stored_is_no_secret(world: World) -> None:
    """The check that every fault ends with has to see what it looks for; the stream keeps one outcome of an invocation, whatever came before."""
    await world.node("a")
    await world.publish(20)
    await world.settle(20)
    before = await world.verdict()
    (headers, body), *_ = await world.read("FAAS_OUTCOMES", "faas.outcome.default.quick.*")
    await world.stream.publish(
        f"faas.outcome.default.quick.{headers['Faas-Invocation']}",
        body,
        headers={"Faas-Event-Id": headers["Faas-Event-Id"], "Faas-Outcome": "failed", "Faas-Usage": "[]"},
    )
    after = await world.verdict()

    assert before.broken == []
    assert len(after.duplicated) == 1


async def test_every_accepted_event_is_settled_by_the_balance_too_after_a_node_and_the_server_died(world: World) -> None:
    """By the projection of a node that started after all of it: nothing open, nothing lost, each event one run with one end."""
    await world.node("a")
    publishing = asyncio.ensure_future(world.publish(60))
    await world.under_way(20)
    await world.kill("a")
    await world.kill_server()
    await world.node("a")
    await publishing
    await world.settle(30)
    await world.node("b")
    async with faas.connect(world.url) as client:
        runs = await client.runs(limit=500)
        async with asyncio.timeout(20):
            while len(balance := await asyncio.to_thread(imbalance, world, "b")) < len(FUNCTIONS) or any(balance.values()):
                await client.runs(limit=1)

    assert {run.event_id for run in runs if run.accepted_ms} == set(world.accepted)
    assert [run for run in runs if not run.outcome] == []
    assert (await world.verdict()).broken == []
