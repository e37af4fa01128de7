"""Webhooks under faults: F12 on a full disk, F23 with a wrong clock, F32 over the death of the node that took a delivery."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from deliveries import STANDARD_SECRET, by_standard
from node import write_function

sys.path.insert(0, str(Path(__file__).parent))

from test_clocks import how, skewed
from test_deaths import check
from test_doors import post
from test_full_disk import LOW_BYTES, disk, fill, on, until_ready
from world import EXECUTED, World

__all__ = ["disk", "how"]  # fixtures

pytestmark = pytest.mark.timeout(90)
HOUR_S = 3600
DELIVERIES = 60
OPEN = '[[trigger]]\nwebhook = "open"\nverify = "none"\n'
COUNTED = "def handle(event: int, ctx):\n    note(ctx)\n    return event\n"


async def test_f12_on_a_full_disk_a_delivery_is_503_and_taken_once_there_is_space(disk: Path) -> None:
    """Its sender has it still, and is told when to come again; a 202 for what nobody has stored would be the end of it."""
    write_function(disk.parent / "functions", "open", "def handle(event):\n    return event\n", OPEN)
    async with on(disk) as node:
        delivery = {"content-type": "application/json", "x-delivery-id": "full"}
        ballast = fill(disk, leave_bytes=LOW_BYTES)
        await until_ready(node, 503)
        refused = await post(node.info["http"], "/hooks/default/open", b"1", delivery)
        ballast.unlink()
        await until_ready(node, 200)
        taken = await post(node.info["http"], "/hooks/default/open", b"1", delivery)
        await node.outcome("full")
        stored = await node.count("FAAS_EVENTS", "faas.hook.default.open")

    assert (refused[0], refused[2]["code"], "Retry-After" in refused[1]) == (503, "store_refused", True)
    assert (taken[0], stored) == (202, 1)


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S], ids=["fast", "slow"])
async def test_f23_signed_times_are_held_against_the_clock_of_the_node_that_is_asked(tmp_path: Path, how: str, by_s: int) -> None:
    """One that is an hour off refuses what senders sign, in words that name the time; its /readyz and the doctor say whose clock is wrong."""
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets" / "std").touch(mode=0o600)
    (tmp_path / "secrets" / "std").write_text(STANDARD_SECRET)
    async with World(tmp_path, seed=23) as world:
        world.function("std", COUNTED.replace("    note(ctx)\n", ""), '[[trigger]]\nwebhook = "std"\nverify = "standard"\nsecret = "std"\n')
        await world.node("wrong", environ={**skewed(how, by_s), "FAAS_SECRETS__FOLDER": str(tmp_path / "secrets")})
        url = json.loads((tmp_path / "wrong" / "node.json").read_text())["http"]
        now = time.time()
        ours = await post(url, "/hooks/default/std", b"1", by_standard(STANDARD_SECRET, b"1", "msg_ours", now))
        theirs = await post(url, "/hooks/default/std", b"1", by_standard(STANDARD_SECRET, b"1", "msg_theirs", now + by_s))

    assert (ours[0], "time" in ours[2]["detail"]) == (401, True)
    assert theirs[0] == 202


async def test_f32_deliveries_to_a_node_that_dies_are_sent_again_to_another_and_run_once(tmp_path: Path) -> None:
    """Stored and not answered, answered, or never come: whatever its sender knows of it, what it sends again has the same ids and one outcome."""
    async with World(tmp_path, seed=32) as world:
        world.function("counted", EXECUTED.format(log=str(world.log)) + COUNTED, OPEN)
        await world.node("a")
        await world.node("b")
        urls = [json.loads((tmp_path / name / "node.json").read_text())["http"] for name in ("a", "b")]
        answered: dict[str, object] = {}
        enough = asyncio.Event()

        async def deliver(url: str, number: int) -> object:
            headers = {"content-type": "application/json", "x-delivery-id": f"delivery-{number}"}
            status, _, document = await post(url, "/hooks/default/open", str(number).encode(), headers)
            assert status == 202, document
            return document

        async def first(number: int) -> None:
            try:
                answered[f"delivery-{number}"] = await deliver(urls[0], number)
            except aiohttp.ClientError:
                return  # the node is dead: its sender knows nothing
            if len(answered) >= DELIVERIES // 3:
                enough.set()

        async with asyncio.TaskGroup() as tasks:
            for number in range(DELIVERIES):
                tasks.create_task(first(number))
            await enough.wait()
            await world.kill("a")
        for number in range(DELIVERIES):
            document = await deliver(urls[1], number)
            assert answered.get(f"delivery-{number}", document) == document
            world.accepted[f"delivery-{number}"] = ("counted", number)

        await check(world)

    assert len(answered) >= DELIVERIES // 3
