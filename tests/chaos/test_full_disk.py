"""A disk that fills up below a node: F12 and the tmpfs of F34. On a small tmpfs as state folder, where mounting is permitted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from node import ECHO, SHORT_LEASE, Node, command, end, running, write_function

from faas import client
from faas.errors import BusUnavailable

SIZE_BYTES = 160 * 2**20
SLACK_BYTES = 2**20
LOW_BYTES = 12 * 2**20
"""Left on a disk on which events are refused, and what was accepted still ends."""

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@asynccontextmanager
async def on(disk: Path) -> AsyncIterator[Node]:
    """A node whose state folder is on that disk."""
    functions = disk.parent / "functions"
    write_function(functions, "echo", ECHO, '[[trigger]]\nsubject = "disk.echo"\n')
    async with running(functions, disk / "state", "--environments", "current", environ=SHORT_LEASE) as node:
        await node.watch()
        assert end(await node.event("disk.echo", b"1", id="before")) == ("succeeded", "")
        yield node


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """Somebody else's file, which leaves so much."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave_bytes - SLACK_BYTES)
        file.seek(0, os.SEEK_END)
        with suppress(OSError):  # the node writes too: the last bytes are had by trying
            while shutil.disk_usage(disk).free > leave_bytes:
                file.write(bytes(4096))
    return ballast


async def ready(node: Node) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{node.info['http']}/readyz", timeout=5) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["detail"]

    return await asyncio.to_thread(ask)


async def until_ready(node: Node, status: int, within_s: float = 15) -> str:
    """Ask /readyz until it answers so; what it says then."""
    async with asyncio.timeout(within_s):
        while (said := await ready(node))[0] != status:
            pass
    return said[1]


async def test_a_second_node_joins_a_bus_on_a_small_disk_and_leaves_its_bounds_alone(disk: Path) -> None:
    """It does not know that disk: the sizes that it would choose are more than the server has, or more than it should hold."""
    async with on(disk) as node:
        before = {info.config.name: info.config.max_bytes for info in await node.client.jetstream().streams_info()}
        options = ("--environments", "current", "--nats", node.info["nats"], "--node", "second")
        async with running(disk.parent / "none", disk.parent / "second", *options) as second:
            after = {info.config.name: info.config.max_bytes for info in await node.client.jetstream().streams_info()}
            assert "echo" in second.info["functions"]

    assert after == before


async def test_f12_on_a_disk_that_fills_up_events_are_refused_and_what_was_accepted_ends(disk: Path) -> None:
    """Before it is full: a stream that cannot write lets publishers wait without a word."""
    async with on(disk) as node:
        ballast = fill(disk, leave_bytes=LOW_BYTES)
        said = await until_ready(node, 503)
        async with client.connect(node.info["nats"]) as caller:
            with pytest.raises(BusUnavailable, match=r"is full.*faas doctor"):
                await caller.publish("disk.echo", b"x" * 100_000)
            assert await caller.invoke("echo", 5) == 5
            code, out, _ = await command("doctor", "--state", str(node.state), "--json")
            findings = {finding["name"]: finding for finding in json.loads(out)}
            ballast.unlink()
            await until_ready(node, 200)
            await caller.publish("disk.echo", 6, id="after")
        assert end(await node.outcome("after")) == ("succeeded", "")
        log = (node.state / "node.log").read_text()

    assert "space on the disk" in said
    assert code == 1
    assert "refuses events" in findings["disk"]["detail"]
    assert "space on the disk" in findings["node"]["detail"]
    assert ("disk.low" in log, "disk.recovered" in log) == (True, True)
    assert sorted(node.outcomes) == ["after", "before"]


async def test_f12_after_a_full_disk_the_bus_heals_by_itself_and_nothing_accepted_is_lost(disk: Path) -> None:
    """Filled within a moment: a publish is an error, never an event that vanished; the server is restarted once there is space."""
    async with on(disk) as node:
        ballast = fill(disk, leave_bytes=0)
        async with client.connect(node.info["nats"]) as caller:
            with pytest.raises(BusUnavailable):
                await caller.publish("disk.echo", b"x" * 100_000, id="refused")
            said = await until_ready(node, 503)
            ballast.unlink()
            await until_ready(node, 200)
        stored = await node.count("FAAS_EVENTS", "disk.echo")
        async with client.connect(node.info["nats"]) as caller:
            await caller.publish("disk.echo", 3, id="refused")
            await caller.publish("disk.echo", 4, id="after")
        ends = [end(await node.outcome(event, 20)) for event in ("refused", "after")]
        log = (node.state / "node.log").read_text()

    assert "space on the disk" in said
    assert stored == 1
    assert ends == [("succeeded", "")] * 2
    assert sorted((event, len(found)) for event, found in node.outcomes.items()) == [("after", 1), ("before", 1), ("refused", 1)]
    assert ("disk.full" in log, "server.restarted" in log) == (True, True)
