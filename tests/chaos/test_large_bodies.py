"""Bodies above the bus limit under faults: F19 of the fault matrix, and deaths while a body is on its way. The invariants hold, and each result is whole."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import EXECUTED, World

import faas
from faas.client import Client
from faas.envelope import Ticket

pytestmark = pytest.mark.timeout(90)
MIB = 2**20
LARGE = "def handle(event: bytes, ctx):\n    note(ctx)\n    return event[::-1]\n"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, seed=19) as made:
        made.function("large", EXECUTED.format(log=str(made.log)) + LARGE)
        yield made
    assert made.left == []  # I4


def body_of(number: int) -> bytes:
    return bytes([number]) * (2 * MIB) + b"end"


async def hand_in(world: World, client: Client, count: int) -> list[Ticket]:
    tickets = []
    for number in range(count):
        tickets.append(await client.submit("large", body_of(number), id=f"large-{number}"))
        world.accepted[f"large-{number}"] = ("large", number)
    return tickets


async def check(world: World, client: Client, tickets: list[Ticket]) -> None:
    """All has settled, every invariant holds, and every outcome names the whole result."""
    await world.settle(30.0)
    verdict = await world.verdict()

    assert verdict.accepted == len(tickets)
    assert verdict.broken == []
    for number, ticket in enumerate(tickets):
        assert (await client.outcome(ticket)).result == body_of(number)[::-1]


async def test_f19_bodies_at_the_boundary_spare_every_connection(world: World) -> None:
    """The server cuts off who sends more than it takes, headers included; a node that is cut off is off the bus."""
    await world.node("a")
    sizes = [MIB + beyond for beyond in (-5000, -4097, -4096, -4095, -10, -1, 0, 1)]
    async with faas.connect(world.url) as client:
        for number, (size, headers) in enumerate((size, {"X-Long": "h" * long}) for size in sizes for long in (1, 4000, 40_000)):
            ticket = await client.submit("large", b"x" * size, id=f"edge-{number}", headers=headers)
            world.accepted[f"edge-{number}"] = ("large", number)
            assert (await client.outcome(ticket)).result == b"x" * size
        await world.settle(20.0)

        assert (await world.verdict()).broken == []
        assert client.nats.stats["reconnects"] == 0
    assert world.is_up("a")
    assert "bus.disconnected" not in (world.nodes["a"].state / "node.log").read_text()


@pytest.mark.parametrize("point", ["payload_fetched:3", "before_payload:3", "payload_stored:3", "after_outcome:3", "after_ack:3"])
async def test_a_node_killed_while_a_body_is_on_its_way_leaves_one_whole_result(world: World, point: str) -> None:
    """An object that was stored for nothing is no outcome; an outcome is never without its object."""
    await world.node("a", crash_at=point)
    async with faas.connect(world.url) as client:
        tickets = await hand_in(world, client, 8)
        await world.ended("a")
        await world.node("a")

        await check(world, client, tickets)


async def kill_server(world: World) -> None:
    await world.kill_server(signal.SIGKILL)


async def freeze_server(world: World) -> None:
    await world.freeze_server(4.0)


@pytest.mark.parametrize("fault", [kill_server, freeze_server])
async def test_a_server_that_goes_away_meanwhile_costs_no_result(world: World, fault: Callable[[World], Awaitable[None]]) -> None:
    """Half an object is nothing; what was read so far is read on, or again."""
    await world.node("a")
    async with faas.connect(world.url) as client:
        tickets = await hand_in(world, client, 12)
        await asyncio.sleep(0.1)
        await fault(world)

        await check(world, client, tickets)
