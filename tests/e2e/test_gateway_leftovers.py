"""What a synchronous call leaves in the bucket of large bodies: nothing, however its client goes. All tenants share that bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from node import Node, running, write_function

ITEMS = "def handle(event: int):\n    for n in range(event):\n        yield b'x' * 900_000\n"
LARGE = "def handle(event: int):\n    return b'x' * event\n"
JSON = {"Content-Type": "application/json"}
STREAM = {**JSON, "Accept": "text/event-stream"}
CHUNKS = "$O.FAAS_PAYLOADS.C.>"


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root: Path = tmp_path_factory.mktemp("leftovers")
    write_function(root / "functions", "items", ITEMS)
    write_function(root / "functions", "large", LARGE)
    async with running(root / "functions", root / "state") as node:
        yield node


@pytest.fixture
async def http(node: Node) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(node.info["http"]) as session:
        yield session


async def emptied(node: Node, wait_s: float = 8.0) -> bool:
    """Whether nothing is in the bucket, before long."""
    try:
        async with asyncio.timeout(wait_s):
            while await node.count("OBJ_FAAS_PAYLOADS", CHUNKS):
                pass
    except TimeoutError:
        return False
    return True


async def test_a_stream_that_is_read_to_its_end_leaves_no_result(node: Node, http: aiohttp.ClientSession) -> None:
    """Its reader has had every item; nobody can ask for the result of a call that nothing stored."""
    async with http.post("/invoke/default/items", data=b"3", headers=STREAM) as answer:
        said = await answer.read()

    assert said.count(b"event: chunk") == 3
    assert b'"outcome":"succeeded"' in said
    assert b"result_elsewhere" not in said
    assert await node.count("OBJ_FAAS_PAYLOADS", CHUNKS) == 0


async def test_a_stream_that_nobody_reads_leaves_no_result(node: Node, http: aiohttp.ClientSession) -> None:
    """Its reader is cut off four MiB behind, and the call may have ended by then."""
    async with http.post("/invoke/default/items", data=b"12", headers=STREAM) as answer:
        await answer.content.readline()
        await node.request("large", b"1")  # the node has gone on meanwhile
        answer.close()

    assert await emptied(node)


async def test_a_large_result_whose_client_goes_in_the_middle_leaves_the_bucket(node: Node, http: aiohttp.ClientSession) -> None:
    """Nobody comes back for it: a call is asked again, and runs again."""
    async with http.post("/invoke/default/large", data=b"40000000", headers=JSON) as answer:
        assert answer.status == 200
        await answer.content.readexactly(1000)
        assert await node.count("OBJ_FAAS_PAYLOADS", CHUNKS) > 0
        answer.close()

    assert await emptied(node)
