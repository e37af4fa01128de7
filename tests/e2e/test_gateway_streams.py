"""Invocations as server-sent events: state, progress and items as they come, from where the reader was, and no memory for one that does not read."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from doors import Doors, Reader, Said, doors, problem
from node import running

STREAM = {"Content-Type": "application/json", "Accept": "text/event-stream"}
WORDS = b'"a b c d"'


@pytest.fixture(scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with doors(tmp_path_factory.mktemp("streams")) as door:
        yield door


async def events(answer: aiohttp.ClientResponse) -> list[Said]:
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    return [said async for said in Reader(answer)]


def of(kind: str, found: list[Said]) -> list[object]:
    return [said.data for said in found if said.event == kind]


@pytest.mark.parametrize("prefer", ["", "respond-async"])
async def test_items_progress_and_state_come_as_they_are_said(door: Doors, prefer: str) -> None:
    """A page shows the words of a model while it writes them, whether the invocation is stored or not."""
    async with door.http.post("/invoke/default/tokens", data=WORDS, headers={**STREAM, **({"Prefer": prefer} if prefer else {})}) as answer:
        found = await events(answer)

    states = [said.data for said in found if said.event == "state"]
    assert of("chunk", found) == ["a", "b", "c", "d"]
    assert [said.data["fraction"] for said in found if said.event == "progress"][:2] == [0.0, 0.25]
    assert [state["state"] for state in states] == ["waiting", "running", "ended"]
    assert (states[-1]["outcome"], states[-1]["invocation"]) == ("succeeded", states[0]["invocation"])
    assert found[-1].event == "state"


async def test_an_item_is_json_whatever_it_was(door: Doors) -> None:
    """A line break in a text is no line of the protocol; bytes come as base64."""
    async with door.http.post("/invoke/default/kinds", data=b"1", headers=STREAM) as answer:
        found = await events(answer)

    assert of("chunk", found) == [{"n": 1}, {"base64": "/wA="}, "two\r\nlines"]


async def test_a_function_that_streams_nothing_has_its_result_as_the_one_item(door: Doors) -> None:
    """Whoever asks for a stream need not know what kind of handler it is; whoever comes a little later gets it too."""
    async with door.http.post("/invoke/default/double", data=b'{"n": 2}', headers={**STREAM, "Prefer": "respond-async"}) as answer:
        found = await events(answer)
        location = answer.headers["Content-Location"]
    async with door.http.get(f"{location}/events") as answer:
        later = await events(answer)

    assert of("chunk", found) == of("chunk", later) == [{"n2": 4}]


async def test_a_failure_is_the_last_state(door: Doors) -> None:
    """The status is out by then."""
    async with door.http.post("/invoke/default/raises", data=b"1", headers=STREAM) as answer:
        last = (await events(answer))[-1]

    assert (last.data["state"], last.data["reason"], last.data["problem"]["code"]) == ("ended", "error", "error")


async def test_what_ends_before_it_begins_is_no_stream(door: Doors) -> None:
    """A client sees a 404 as one."""
    answer = await door.post("/invoke/default/nosuch", WORDS, Content_Type="application/json", Accept="text/event-stream")

    assert problem(answer) == (404, "unknown_function")


async def test_events_of_a_stored_invocation_are_followed_by_its_id_until_it_has_ended(door: Doors) -> None:
    """The one who hands it in and the one who watches need not be the same."""
    _, headers, _ = await door.post("/invoke/default/tokens", WORDS, Content_Type="application/json", Prefer="respond-async")
    async with door.http.get(f"{headers['location']}/events") as answer:
        found = await events(answer)
    async with door.http.get(f"{headers['location']}/events") as answer:
        again = await events(answer)

    assert of("chunk", found) == ["a", "b", "c", "d"]
    assert found[-1].data["outcome"] == "succeeded"
    assert [said["message"] for said in of("progress", again)] == ["a", "b", "c", "d"]  # type: ignore[index]
    assert again[-1].data["outcome"] == "succeeded"


async def test_events_can_be_followed_at_any_node(door: Doors, tmp_path: Path) -> None:
    """A proxy sends the one who watches elsewhere than the one who handed it in."""
    async with running(tmp_path / "none", tmp_path / "state", "--nats", door.node.info["nats"], "--node", "other") as other:
        _, headers, _ = await door.post("/invoke/default/tokens", b'"a b c d e f"', Content_Type="application/json", Prefer="respond-async")
        async with aiohttp.ClientSession(other.info["http"]) as http, http.get(f"{headers['location']}/events") as answer:
            found = await events(answer)
        async with aiohttp.ClientSession(other.info["http"]) as http, http.get(headers["location"]) as answer:
            state = await answer.json()

    assert of("chunk", found)[-1] == "f"
    assert found[-1].data["outcome"] == state["outcome"] == "succeeded"


async def test_a_reader_that_comes_back_goes_on_where_it_was(door: Doors) -> None:
    """A browser whose connection broke sends the last id; it gets nothing twice, and misses nothing."""
    seen: list[Said] = []
    async with door.http.post("/invoke/default/tokens", data=WORDS, headers={**STREAM, "Prefer": "respond-async"}) as answer:
        async for said in Reader(answer):
            seen.append(said)
            if said.data == "b":
                break
        answer.close()
        location = answer.headers["Content-Location"]
    async with door.http.get(f"{location}/events", headers={"Last-Event-ID": seen[-1].id}) as answer:
        rest = await events(answer)

    assert of("chunk", seen) + of("chunk", rest) == ["a", "b", "c", "d"]
    told = [said.data["message"] for said in [*seen, *rest] if said.event == "progress"]
    assert told == ["a", "b", "c", "d"]


async def test_a_reader_that_goes_away_takes_its_synchronous_invocation_along(door: Doors, tmp_path: Path) -> None:
    """As without a stream."""
    async with door.http.post("/invoke/default/waits", data=json.dumps(str(tmp_path)).encode(), headers=STREAM) as answer:
        async with asyncio.timeout(8):
            while not (tmp_path / "began").exists():
                await door.send("GET", "/healthz")
        answer.close()
    async with asyncio.timeout(8):
        while not (tmp_path / "cancelled").exists():
            await door.send("GET", "/healthz")


async def test_a_reader_that_does_not_read_is_cut_off_and_the_node_goes_on(door: Doors) -> None:
    """Items without end, and nobody takes them: the bus does not wait, so the node may not keep them."""
    reader, writer = await asyncio.open_connection(*door.address, limit=2**10)
    head = (
        f"POST /invoke/default/much HTTP/1.1\r\nHost: {door.address[0]}\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
    )
    writer.write(f"{head}Content-Length: 6\r\n\r\n100000".encode())
    await reader.readuntil(b"\r\n")
    async with asyncio.timeout(9):
        while True:
            status, _, body = await door.send("GET", "/metrics")
            ended = [line for line in body.decode().splitlines() if line.startswith("faas_errors_total{") and 'function="much"' in line]
            if status == 200 and any('reason="cancelled"' in line for line in ended):
                break
    writer.close()

    assert int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{door.node.process.pid}/status").read_text())[0]) < 400_000
    assert (await door.post("/invoke/default/double", b'{"n":1}', Content_Type="application/json"))[0] == 200


async def test_events_of_what_nobody_knows_are_a_problem(door: Doors) -> None:
    """An EventSource stops at a 404, and would come back for ever at an empty stream."""
    assert problem(await door.send("GET", f"/invocations/{'a' * 26}/events")) == (404, "unknown_invocation")
