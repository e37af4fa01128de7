"""Nodes whose wall clock is an hour off: F23. Nothing expires, waits longer or is repeated for it, and the node, its metrics and the doctor say it.

The clock goes wrong by libfaketime (Debian: libfaketime) for the node and all that it starts, where that is installed; and, everywhere, by the hook
of crashing.py for the node alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_deaths import check
from world import CRASHING, EXECUTED, World

HOUR_S = 3600
LATER = (
    "import faas\ndef handle(event: int, ctx):\n    note(ctx)\n    if ctx.attempt == 1:\n        raise faas.Retry(6)\n    return event\n"
)
"""Its second attempt waits in a schedule."""
HASTY = "def handle(event: int, ctx):\n    note(ctx)\n    return event\n"

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, seed=23) as made:
        made.function("later", EXECUTED.format(log=str(made.log)) + LATER)
        made.function("hasty", EXECUTED.format(log=str(made.log)) + HASTY, '[limits]\nqueue_timeout = "10m"\n')
        yield made
    assert made.left == []  # I4


@pytest.fixture(params=["hook", "faketime"])
def how(request: pytest.FixtureRequest) -> str:
    if request.param == "faketime" and not any(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")):
        pytest.skip("libfaketime is not installed here: apt-get install libfaketime")
    return str(request.param)


def skewed(how: str, by_s: int) -> Mapping[str, str]:
    """The environment of a node whose wall clock is off by so much, and whose monotonic clock is right."""
    if how == "hook":
        return {"SKEW_S": str(by_s)}
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{by_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S], ids=["fast", "slow"])
async def test_f23_a_node_whose_clock_is_an_hour_off_expires_and_delays_nothing(world: World, how: str, by_s: int) -> None:
    """Ages, deadlines and the moments of retries are the bus's; leases and timeouts are on the monotonic clock."""
    await world.node("wrong", environ=skewed(how, by_s))
    await world.publish(40, ["quick", "slow", "flaky", "hasty", "later"])
    deadline = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    await world.stream.publish("chaos.quick", b"1", headers={"Nats-Msg-Id": "bounded", "Faas-Deadline": deadline})
    world.accepted["bounded"] = ("quick", 1)

    await check(world)
    outcomes = [headers["Faas-Outcome"] for headers, _ in await world.read("FAAS_OUTCOMES", "faas.outcome.>")]
    assert set(outcomes) == {"succeeded"}
    assert "clock.skewed" in (world.nodes["wrong"].state / "node.log").read_text()


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S, 0], ids=["fast", "slow", "right"])
async def test_f23_a_clock_that_is_wrong_is_flagged_and_stops_nothing(world: World, by_s: int) -> None:
    """The node is ready all the same; its log, /readyz, its metrics and the doctor name the skew."""
    environ = skewed("hook", by_s) if by_s else {}
    await world.node("wrong", environ=environ)
    state = world.nodes["wrong"].state
    http = json.loads((state / "node.json").read_text())["http"]
    ready = json.loads(await page(f"{http}/readyz"))
    (skew_s,) = [
        float(line.split()[1]) for line in (await page(f"{http}/metrics")).splitlines() if line.startswith("faas_clock_skew_seconds ")
    ]
    doctor = await asyncio.create_subprocess_exec(
        sys.executable, str(CRASHING), "doctor", "--state", str(state), "--nats", world.url, "--json",
        env={**os.environ, **environ}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await doctor.communicate()
    findings = [finding for finding in json.loads(out) if finding["name"] == "clock"]
    log = (state / "node.log").read_text()

    assert ready["status"] == "ready"
    assert ("the clock of this machine" in ready.get("detail", ""), "clock.skewed" in log) == (by_s != 0,) * 2
    assert skew_s == pytest.approx(by_s, abs=1.5)
    assert {finding["state"] for finding in findings} == {"warning" if by_s else "ok"}
    assert all(("ahead of" in finding["detail"]) == (by_s > 0) for finding in findings)


async def page(url: str) -> str:
    def read() -> str:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)
