"""The HTTP door under faults: F12 on a full disk, a bus that is away, a node that dies with a call, a node that stops. No 2xx for what is not stored."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from node import SHORT_LEASE, running, start, write_function
from node import ready as until_started

sys.path.insert(0, str(Path(__file__).parent))

from test_full_disk import LOW_BYTES, disk, fill, on, until_ready
from world import World

pytestmark = pytest.mark.timeout(90)
JSON = {"Content-Type": "application/json"}
LATER = {**JSON, "Prefer": "respond-async"}

__all__ = ["disk"]  # a fixture


async def post(url: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], Any]:
    """(status, headers, the document that is the answer)."""
    async with aiohttp.ClientSession(url) as http, http.post(path, data=io.BytesIO(data), headers=headers) as answer:
        return answer.status, dict(answer.headers), json.loads(await answer.read())


async def test_f12_on_a_full_disk_an_event_is_503_and_none_is_lost(disk: Path) -> None:
    """The sender is told at once and asks again; what needs no disk still runs; afterwards events are taken again."""
    async with on(disk) as node:
        url = node.info["http"]
        ballast = fill(disk, leave_bytes=LOW_BYTES)
        await until_ready(node, 503)
        refused = await post(url, "/invoke/default/echo", b"1", LATER)
        at_once = await post(url, "/invoke/default/echo", b"5", JSON)
        large = await post(url, "/invoke/default/echo", b"5" * 2_000_000, JSON)
        ballast.unlink()
        await until_ready(node, 200)
        taken = await post(url, "/invoke/default/echo", b"6", {**JSON, "Prefer": "wait=10"})
        stored = await node.count("FAAS_EVENTS", "faas.submit.default.echo")

    assert (refused[0], refused[2]["code"], "Retry-After" in refused[1]) == (503, "store_refused", True)
    assert (at_once[0], at_once[2]) == (200, 5)
    assert (large[0], large[2]["code"]) == (503, "no_space")
    assert (taken[0], taken[2]) == (200, 6)
    assert stored == 1


async def test_while_the_bus_is_away_everything_is_503_and_what_was_accepted_before_has_one_outcome(tmp_path: Path) -> None:
    """A door that said 202 to what is in its own memory would lose it with the node."""
    async with World(tmp_path, seed=12) as world:
        await world.node("a")
        url = json.loads((tmp_path / "a" / "node.json").read_text())["http"]
        accepted = [await post(url, "/invoke/default/quick", str(n).encode(), LATER) for n in range(5)]
        assert world._server is not None
        world._server.kill()
        await world._server.wait()
        async with asyncio.timeout(20):
            while (away := await post(url, "/invoke/default/quick", b"99", LATER))[0] != 503:
                raise AssertionError(away)
        at_once = await post(url, "/invoke/default/quick", b"99", JSON)
        await world.start_server()
        async with asyncio.timeout(20):
            while (back := await post(url, "/invoke/default/quick", b"7", {**JSON, "Prefer": "wait=10"}))[0] == 503:
                pass
        states = [await _state(url, answer[1]["Location"]) for answer in accepted]
        executed = world.log.read_text().splitlines()

    assert [answer[0] for answer in accepted] == [202] * 5
    assert (away[2]["code"], "Retry-After" in away[1], at_once[0]) == ("bus_unavailable", True, 503)
    assert (back[0], back[2]) == (200, 7)
    assert [state["result"] for state in states] == [0, 1, 2, 3, 4]
    assert len(executed) == len(set(executed)) == 6


async def _state(url: str, location: str) -> dict[str, Any]:
    async with asyncio.timeout(20), aiohttp.ClientSession(url) as http:
        while True:
            async with http.get(location) as answer:
                state: dict[str, Any] = json.loads(await answer.read())
            if state.get("state") == "ended":
                return state


SLOW = "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n"


async def test_a_call_whose_node_dies_is_told_so(tmp_path: Path) -> None:
    """Its answer never comes, and without a deadline its client would wait for an hour."""
    write_function(tmp_path / "functions", "slow", SLOW, '[limits]\ntimeout = "5m"\n')
    async with running(tmp_path / "functions", tmp_path / "one", environ=SHORT_LEASE) as node:
        (tmp_path / "two").mkdir()
        second = await start(tmp_path / "functions", tmp_path / "two", "--nats", node.info["nats"], "--node", "second")
        try:
            await until_started(second, tmp_path / "two")
            calls = [asyncio.ensure_future(post(node.info["http"], "/invoke/default/slow", b"300", JSON)) for _ in range(12)]
            await asyncio.wait(calls, timeout=1)  # any node may have taken any of them; that all went to one is one in 4,096
        finally:
            second.send_signal(signal.SIGKILL)
            await second.wait()
        (first, *_), rest = await asyncio.wait(calls, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        for call in rest:
            call.cancel()
        status, _, document = first.result()

    assert (status, document["code"]) == (502, "fate_unknown")


async def _follow(url: str, path: str) -> str:
    """All that a stream of events says until the node ends it, as it should."""
    async with aiohttp.ClientSession(url) as http, http.get(path) as answer:
        return await answer.text()


async def test_a_node_that_stops_finishes_what_runs_and_lets_nobody_in(tmp_path: Path) -> None:
    """A proxy takes the 503 to another node; the caller who waits gets its result; whoever follows events comes back elsewhere."""
    write_function(tmp_path / "functions", "slow", SLOW)
    (tmp_path / "state").mkdir()
    process = await start(tmp_path / "functions", tmp_path / "state")
    info = await until_started(process, tmp_path / "state")
    url = info["http"]
    assert (await post(url, "/invoke/default/slow", b"0", JSON))[0] == 200
    async with aiohttp.ClientSession(url) as http:
        running_call = asyncio.ensure_future(post(url, "/invoke/default/slow", b"3", JSON))
        waiting = asyncio.ensure_future(post(url, "/invoke/default/slow", b"30", {**JSON, "Prefer": "wait=60"}))
        handed_in = await post(url, "/invoke/default/slow", b"30", LATER)
        following = asyncio.ensure_future(_follow(url, f"{handed_in[1]['Location']}/events"))
        async with asyncio.timeout(10):
            while 'state="leased",tenant="default"} 3.0' not in (await (await http.get("/metrics")).text()):
                pass
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await http.get("/readyz")).status == 200:
                pass
        refused = await post(url, "/invoke/default/slow", b"0", JSON)
        later = await waiting
        finished, followed = await running_call, await following
        live = (await http.get("/healthz")).status
    async with asyncio.timeout(20):
        assert await process.wait() == 0

    assert (refused[0], refused[2]["code"], "Retry-After" in refused[1]) == (503, "not_ready", True)
    assert (later[0], "Location" in later[1]) == (202, True)
    assert (finished[0], finished[2]) == (200, 3.0)
    assert '"state":"' in followed
    assert '"ended"' not in followed
    assert live == 200
