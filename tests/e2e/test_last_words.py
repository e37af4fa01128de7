"""What a node says of itself: a database that is broken, that it stops, and what became of the rest."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from node import ECHO, end, running, start, write_function
from node import ready as until_ready

import faas
from faas.errors import BusUnavailable


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_a_broken_database_is_said_and_stops_nothing(tmp_path: Path) -> None:
    """Functions run; only the questions about them cannot be answered here."""
    write_function(tmp_path / "functions", "echo", ECHO, '[[trigger]]\nsubject = "life.echo"\n')
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "runs.db").write_bytes(b"no database" * 1000)
    async with running(tmp_path / "functions", tmp_path / "state") as node:
        await node.watch()
        outcome = await node.event("life.echo", b"1", id="a")
        status, text = await asyncio.to_thread(get, node.info["http"] + "/readyz")
        async with faas.connect(node.info["nats"]) as client:
            with pytest.raises(BusUnavailable, match="delete"):
                await client.runs()

    assert end(outcome) == ("succeeded", "")
    assert (status, json.loads(text)["status"]) == (200, "ready")
    assert "faas runs" in json.loads(text)["detail"]


# ---------------------------------------------------------------- the last line


async def test_a_node_that_stops_is_not_ready_at_once_and_says_at_last_what_it_finished_and_gave_back(tmp_path: Path) -> None:
    """Whoever restarts nodes can tell a clean stop from one that threw work away."""
    code = "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n"
    write_function(tmp_path / "functions", "slow", code, '[[trigger]]\nsubject = "life.slow"\n[scale]\nmax_workers = 1\n')
    state = tmp_path / "state"
    state.mkdir()
    process = await start(tmp_path / "functions", state)
    info = await until_ready(process, state)
    async with faas.connect(info["nats"]) as client:
        for ticket in [await client.submit("slow", 1.5) for _ in range(2)]:
            async with asyncio.timeout(8):
                while f"node {info['node']}" not in (await client.why(ticket.invocation)).because:
                    pass
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            while (await asyncio.to_thread(get, info["http"] + "/readyz"))[0] == 200:
                pass
        assert process.returncode is None
    assert await asyncio.wait_for(process.wait(), 8) == 0
    log = (state / "node.log").read_text()
    stopped = [json.loads(line) for line in log.splitlines() if '"node.stopped"' in line]

    assert [(line["finished"], line["given_back"], line["killed"]) for line in stopped] == [(1, 1, 0)]
    assert (
        log.splitlines()[-1] == f"faas: node {info['node']} has stopped: invocations: 1 finished after the signal, 1 given back unstarted"
    )
