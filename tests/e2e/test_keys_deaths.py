"""What a death leaves of an idempotency key, and what a repetition makes of it: the outcome is there once, and nothing runs beside itself."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import nats
import pytest
from keyed import KEY, began, functions_in, payload, runs, same
from nats.aio.client import Client
from node import SHORT_LEASE, Node, end, head, running

from faas.bus.server import EmbeddedServer
from faas.config import BusConfig
from faas.identity import invocation_id


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root = tmp_path_factory.mktemp("keys")
    async with running(functions_in(root), root / "state", environ=SHORT_LEASE) as node:
        yield node


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a function leaves one file for each time that it runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


async def claim(node: Node, function: str, key: str, first_seen: str) -> str:
    """What a node leaves that dies between the claim of a key and its event; the invocation."""
    invocation = invocation_id("default", function, source="", event_id=key)
    headers = {"Faas-Event-Id": key, "Faas-First-Seen": first_seen, "Faas-Attempt": "0"}
    await node.client.jetstream().publish(f"faas.attempt.default.{function}.{invocation}", b"[]", headers=headers)
    return invocation


@pytest.mark.parametrize("first_seen", ["2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"], ids=["long ago", "just now"])
async def test_a_key_whose_node_died_before_it_stored_the_event_is_run_when_it_is_repeated(
    node: Node, folder: Path, first_seen: str
) -> None:
    """A claim alone would otherwise lock its key for a day."""
    invocation = await claim(node, "counts", f"claimed-{first_seen}", first_seen)
    answer = await node.request("counts", payload(folder), headers={KEY: f"claimed-{first_seen}"})

    assert end(answer) == ("succeeded", "")
    assert head(answer)["Faas-Invocation"] == invocation
    assert runs(folder) == 1


@pytest.mark.timeout(60)
async def test_a_repetition_beyond_the_streams_memory_stores_no_second_event_while_the_first_runs(node: Node, folder: Path) -> None:
    """FAAS_EVENTS forgets an id after two minutes; a second event would run on another node beside the first."""
    first = asyncio.create_task(node.request("waits", payload(folder), headers={KEY: "long"}))
    await began(folder)
    async with forgetful(node):
        await claim(node, "waits", "long", "2026-01-01T00:00:00+00:00")  # as it is two minutes later, without the wait
        before = await node.count("FAAS_EVENTS", "faas.submit.default.waits")
        again = asyncio.create_task(node.request("waits", payload(folder), headers={KEY: "long"}))
        await asyncio.wait([again], timeout=1)
        after = await node.count("FAAS_EVENTS", "faas.submit.default.waits")
    (folder.parent / "go").touch()

    assert same(await first, await again)
    assert (after, runs(folder)) == (before, 1)


@asynccontextmanager
async def forgetful(node: Node) -> AsyncIterator[None]:
    """FAAS_EVENTS takes a message again that it has had, as it does two minutes later."""
    stream = node.client.jetstream()
    config = (await stream.stream_info("FAAS_EVENTS")).config
    was, config.duplicate_window = config.duplicate_window, 0.1
    await stream.update_stream(config)
    try:
        async with asyncio.timeout(20):
            while (await stream.publish("faas.submit.default.fails", b"null", headers={"Nats-Msg-Id": "forgotten"})).duplicate:
                pass
            while (await stream.publish("faas.submit.default.fails", b"null", headers={"Nats-Msg-Id": "forgotten"})).duplicate:
                pass
        yield
    finally:
        config.duplicate_window = was
        await stream.update_stream(config)


async def test_an_event_of_somebody_else_with_the_id_of_a_key_keeps_it_from_nothing(node: Node, folder: Path) -> None:
    """A stream knows an id once, whoever used it first, and that of a key can be worked out by whoever knows the key."""
    invocation = invocation_id("default", "counts", source="", event_id="taken")
    await node.client.jetstream().publish("faas.submit.default.fails", b"null", headers={"Nats-Msg-Id": f"key.{invocation}"})
    answer = await node.request("counts", payload(folder), headers={KEY: "taken"})

    assert end(answer) == ("succeeded", "")
    assert runs(folder) == 1


@pytest.mark.timeout(90)
async def test_a_repetition_finds_its_outcome_on_another_node_after_the_first_was_killed(tmp_path: Path) -> None:
    """The event is in the stream, so whoever is left runs it; its caller asks again, and nothing is billed twice."""
    functions, folder = functions_in(tmp_path), tmp_path / "runs"
    folder.mkdir()
    async with EmbeddedServer.open(BusConfig(), state=tmp_path / "bus", host="127.0.0.1", port=0, token=secrets.token_hex(8)) as server:
        options = ("--nats", server.url, "--environments", "current")
        async with (
            running(functions, tmp_path / "second", *options, environ=SHORT_LEASE) as second,
            nats_client(server.url) as client,
        ):
            asked = asyncio.create_task(client.request("faas.invoke.default.waits", payload(folder), timeout=60, headers={KEY: "killed"}))
            await began(folder)
            os.killpg(second.process.pid, signal.SIGKILL)
            await second.process.wait()
            (tmp_path / "go").touch()
            async with running(functions, tmp_path / "third", *options, environ=SHORT_LEASE) as third:
                answer = await third.request("waits", payload(folder), headers={KEY: "killed"}, wait_s=40)
                again = await third.request("waits", payload(folder), headers={KEY: "killed"})
                billed = await third.records("waits", head(answer)["Faas-Invocation"])
            asked.cancel()

    assert end(answer) == ("succeeded", "")
    assert same(answer, again)
    assert runs(folder) == 2
    assert len(billed) == 1


@asynccontextmanager
async def nats_client(url: str) -> AsyncIterator[Client]:
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["bus", "http"])
async def test_a_node_that_stops_answers_what_it_runs_to_its_end(tmp_path: Path, way: str) -> None:
    """As it does for calls without a key: whoever waits gets the outcome, and need not ask again."""
    functions, folder = functions_in(tmp_path), tmp_path / "runs"
    folder.mkdir()
    async with EmbeddedServer.open(BusConfig(), state=tmp_path / "bus", host="127.0.0.1", port=0, token=secrets.token_hex(8)) as server:
        options = ("--nats", server.url, "--environments", "current")
        async with running(functions, tmp_path / "node", *options, environ=SHORT_LEASE) as node, nats_client(server.url) as client:
            asked: asyncio.Task[bytes]
            if way == "bus":
                asked = asyncio.create_task(answered(client, payload(folder)))
            else:
                asked = asyncio.create_task(posted(node, payload(folder)))
            await began(folder)
            node.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                while b"draining" not in (tmp_path / "node" / "node.log").read_bytes():
                    await client.flush()
            (tmp_path / "go").touch()

            assert await asked == b'"went"'
    assert runs(folder) == 1


async def answered(client: Client, body: bytes) -> bytes:
    return (await client.request("faas.invoke.default.waits", body, timeout=30, headers={KEY: "stops"})).data


async def posted(node: Node, body: bytes) -> bytes:
    url = f"{node.info['http']}/invoke/default/waits"
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers={"Idempotency-Key": "stops"}) as answer:
        return await answer.read()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("when", ["while it runs", "before it is sent again"])
async def test_a_server_that_is_killed_costs_a_key_nothing(tmp_path: Path, when: str) -> None:
    """Claim, event and outcome are on its disk before anybody is told of them; whoever waits over HTTP is answered all the same."""
    functions, folder = functions_in(tmp_path), tmp_path / "runs"
    folder.mkdir()
    async with running(functions, tmp_path / "node", environ=SHORT_LEASE) as node:
        asked = asyncio.create_task(posted(node, payload(folder)))
        await began(folder)
        if when == "while it runs":
            kill_server(node)
            (tmp_path / "go").touch()
            first = await asked
        else:
            (tmp_path / "go").touch()
            first = await asked
            kill_server(node)
        async with asyncio.timeout(20):
            while (again := await posted(node, payload(folder))) != first:
                assert b"bus_unavailable" in again or b"not_ready" in again, again

    assert first == b'"went"'
    assert runs(folder) == 1


def kill_server(node: Node) -> None:
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if "nats-server" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(60)
async def test_a_key_that_two_nodes_get_at_once_runs_on_one_of_them(tmp_path: Path) -> None:
    """A proxy before several nodes sends a repetition to whichever is next."""
    functions, folder = functions_in(tmp_path), tmp_path / "runs"
    folder.mkdir()
    async with EmbeddedServer.open(BusConfig(), state=tmp_path / "bus", host="127.0.0.1", port=0, token=secrets.token_hex(8)) as server:
        options = ("--nats", server.url, "--environments", "current")
        async with (
            running(functions, tmp_path / "one", *options, environ=SHORT_LEASE) as one,
            running(functions, tmp_path / "other", *options, environ=SHORT_LEASE) as other,
        ):
            asked = [asyncio.create_task(posted(node, payload(folder))) for node in (one, other) * 8]
            await began(folder)
            (tmp_path / "go").touch()
            answers = await asyncio.gather(*asked)

    assert set(answers) == {b'"went"'}
    assert runs(folder) == 1
