"""Several nodes on one bus: they share the work, and one that dies, freezes, or loses its server costs no event and repeats no end."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import pytest
from deploying import faas, served
from nats.aio.msg import Msg
from node import SHORT_LEASE, Node, end, head, running, start, stop, write_function

from faas.bus.server import EmbeddedServer
from faas.config import BusConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import running_cluster

pytestmark = pytest.mark.timeout(120)

QUICK = "import time\ndef handle(event: int):\n    time.sleep(0.2)\n    return event\n"
FIRST_HANGS = """import os, time

def handle(event: str):
    mine = os.path.join(event, os.urandom(4).hex())
    first = not os.listdir(event)
    with open(mine, "a", buffering=1) as file:
        while first:
            file.write("x\\n")
            time.sleep(0.05)
    return "second"
"""


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A bus of its own for each test: the registry is one for all of its nodes."""
    config = BusConfig(sync="default")
    async with EmbeddedServer.open(config, state=tmp_path / "bus", host="127.0.0.1", port=0, token=secrets.token_hex(8)) as server:
        yield server.url


@asynccontextmanager
async def nodes(root: Path, url: str, *names: str, **environ: str) -> AsyncIterator[list[Node]]:
    """Nodes on one bus; the first has the folder, the others none. The environment is built once."""
    async with AsyncExitStack() as stack:
        found = []
        for name in names:
            folder = root / "functions" if name == names[0] else root / "none"
            options = ("--nats", url, "--node", name, "--environments", "current")
            found.append(await stack.enter_async_context(running(folder, root / name, *options, environ={**SHORT_LEASE, **environ})))
        await found[0].watch()
        yield found


async def publish(node: Node, subject: str, body: bytes, *ids: str) -> None:
    for id in ids:
        await node.client.jetstream().publish(subject, body, headers={"Nats-Msg-Id": id})


def record(outcome: Msg) -> dict[str, Any]:
    """The usage record of the last attempt."""
    found: dict[str, Any] = json.loads(head(outcome)["Faas-Usage"])[-1]
    return found


async def until(what: Any) -> Any:
    """What a function returns, once it is true."""
    async with asyncio.timeout(30):
        while not (found := await asyncio.to_thread(what)):
            pass
    return found


async def test_two_nodes_share_the_events_of_a_function(tmp_path: Path, url: str) -> None:
    """They compete on one durable consumer: each event runs once, on whichever has a worker."""
    write_function(tmp_path / "functions", "quick", QUICK, '[[trigger]]\nsubject = "several.quick"\n[scale]\nmax_workers = 1\n')
    async with nodes(tmp_path, url, "one", "two") as (one, _):
        ids = [f"q{n}" for n in range(12)]
        await publish(one, "several.quick", b"1", *ids)
        outcomes = [await one.outcome(id, 30) for id in ids]

    assert {end(outcome) for outcome in outcomes} == {("succeeded", "")}
    assert {record(outcome)["node"] for outcome in outcomes} == {"one", "two"}
    assert all(len(one.outcomes[id]) == 1 for id in ids)


async def test_what_a_killed_node_had_is_finished_by_another(tmp_path: Path, url: str) -> None:
    """Within `ack_wait`, once each; what ran on it died with it (F03)."""
    seen = tmp_path / "seen"
    seen.mkdir()
    write_function(tmp_path / "functions", "hangs", FIRST_HANGS, '[[trigger]]\nsubject = "several.hangs"\n')
    async with nodes(tmp_path, url, "one") as (one,):
        await publish(one, "several.hangs", str(seen).encode(), "killed")
        (running_file,) = await until(lambda: list(seen.iterdir()))
        (tmp_path / "two").mkdir()
        process = await start(tmp_path / "none", tmp_path / "two", "--nats", url, "--environments", "current", environ=SHORT_LEASE)
        try:
            await until(lambda: (tmp_path / "two" / "node.json").exists())
            one.process.kill()
            outcome = await one.outcome("killed", 20)
            size = running_file.stat().st_size
            stored = await one.count("FAAS_OUTCOMES", "faas.outcome.>")
        finally:
            await stop(process)

    assert (end(outcome), outcome.data) == (("succeeded", ""), b'"second"')
    assert record(outcome)["node"] != "one"
    assert (head(outcome)["Faas-Attempt"], stored) == ("1", 1)
    assert running_file.stat().st_size == size


async def test_a_node_that_was_frozen_past_its_lease_kills_what_ran_and_says_nothing(tmp_path: Path, url: str) -> None:
    """Another has run it meanwhile: whatever the first one said would come too late, and act on the other's delivery (F06)."""
    seen = tmp_path / "seen"
    seen.mkdir()
    write_function(tmp_path / "functions", "hangs", FIRST_HANGS, '[[trigger]]\nsubject = "several.hangs"\n')
    async with nodes(tmp_path, url, "one") as (one,):
        await publish(one, "several.hangs", str(seen).encode(), "frozen")
        (running_file,) = await until(lambda: list(seen.iterdir()))
        async with running(tmp_path / "none", tmp_path / "two", "--nats", url, "--environments", "current", environ=SHORT_LEASE):
            os.kill(one.process.pid, signal.SIGSTOP)
            try:
                outcome = await one.outcome("frozen", 20)
            finally:
                os.kill(one.process.pid, signal.SIGCONT)
            await until(lambda: "delivery.lost" in (tmp_path / "one" / "node.log").read_text())
            await until(lambda: not grows(running_file))
            records = await one.records("hangs", head(outcome)["Faas-Invocation"])
            outcomes = await one.count("FAAS_OUTCOMES", "faas.outcome.>")
            (consumer,) = [info for info in await one.client.jetstream().consumers_info("FAAS_EVENTS") if "hangs" in info.name]
            reply = await one.request("hangs", str(seen).encode())  # it is of use again

    assert (end(outcome), outcome.data, outcomes) == (("succeeded", ""), b'"second"', 1)
    assert [found["node"] for found in records] == [record(outcome)["node"]] != ["one"]
    assert (consumer.num_ack_pending, consumer.num_pending, consumer.num_redelivered) == (0, 0, 0)
    assert end(reply) == ("succeeded", "")


async def test_a_node_that_was_cut_off_while_something_was_deployed_catches_up(tmp_path: Path, url: str) -> None:
    """Nothing tells it what it has not heard; it looks for itself (F33)."""
    write_function(tmp_path / "functions", "told", QUICK)
    async with nodes(tmp_path, url, "one") as (one,), Wire.to(url) as wire, nodes(tmp_path, wire.url, "two") as (two,):
        wire.cut()
        write_function(tmp_path / "functions", "told", QUICK.replace("return event", "return 2 * event"))
        (deployed,) = await faas(one, "deploy", str(tmp_path / "functions"))
        wire.mend()
        await served(two, "told", deployed["version"])


class Wire:
    """A way to a server that can be cut: what is connected is closed, and nothing gets through until it is mended."""

    def __init__(self, url: str) -> None:
        self._user, _, address = url.rpartition("@")
        self._target = address.rpartition(":")[0], int(address.rpartition(":")[2])
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole = True
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Wire]:
        wire = cls(url)
        server = await asyncio.start_server(wire._accept, "127.0.0.1", 0)
        wire.url = f"{wire._user}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield wire
            wire.cut()
            await asyncio.gather(*wire._tasks)

    def cut(self) -> None:
        self._whole = False
        for writer in self._open:
            writer.close()

    def mend(self) -> None:
        self._whole = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if not self._whole:
            await close(writer)
            return
        there, back = await asyncio.open_connection(*self._target)
        self._open |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                writer.write(data)
        except OSError:
            pass
        self._open.discard(writer)
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    """With nothing left of it, which the garbage collector would complain about."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def grows(file: Path) -> bool:
    """Whether somebody still writes to it, ten times a moment."""
    import time

    before = file.stat().st_size
    time.sleep(0.5)
    return file.stat().st_size != before


async def test_a_killed_leader_of_three_servers_costs_no_event(tmp_path: Path) -> None:
    """What a cluster has acknowledged it keeps, and the nodes go on with the next leader (F10)."""
    write_function(tmp_path / "functions", "quick", QUICK, '[[trigger]]\nsubject = "several.quick"\n')
    async with running_cluster(tmp_path / "cluster") as cluster, nodes(tmp_path, cluster.url, "one", FAAS_BUS__REPLICAS="3") as (one,):
        client = await nats.connect(cluster.url.split(","))
        accepted = []
        leader = await cluster.leader("FAAS_EVENTS")
        for n in range(30):
            if n == 10:
                await cluster.servers[leader].end()
            await accept(client, "several.quick", f"e{n}")
            accepted.append(f"e{n}")
        async with asyncio.timeout(60):
            while len((await insist(client, "FAAS_OUTCOMES")).state.subjects or {}) < len(accepted):
                pass
        info = await insist(client, "FAAS_EVENTS")
        await client.close()

    assert info.config.num_replicas == 3
    assert info.cluster is not None
    assert info.cluster.leader != leader
    assert one.process.returncode == 0


async def accept(client: Any, subject: str, id: str) -> None:
    """Publish until it is acknowledged, with the same id each time."""
    async with asyncio.timeout(30):
        while True:
            try:
                await client.jetstream(timeout=2).publish(subject, b"1", headers={"Nats-Msg-Id": id})
                return
            except (nats.errors.Error, nats.js.errors.Error):
                continue


async def insist(client: Any, stream: str) -> Any:
    """What a stream says of itself and its outcomes, once its leader answers."""
    while True:
        try:
            return await client.jetstream(timeout=2).stream_info(stream, subjects_filter="faas.outcome.>")
        except (nats.errors.Error, nats.js.errors.Error):
            continue
