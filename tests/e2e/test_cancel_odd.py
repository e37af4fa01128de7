"""Cancelling at odd moments and by odd words: while the node drains, a second time, and by a subject that is no invocation's."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import nats.errors
import pytest
from node import Node, running, write_function

import faas

HOLDS = "import time\ndef handle(event, ctx):\n    open(event, 'w').close()\n    while not ctx.cancelled:\n        time.sleep(0.01)\n"
AGAIN = "import faas\ndef handle(event, ctx):\n    raise faas.Retry(60)\n"

pytestmark = pytest.mark.timeout(40)


async def until_there(file: Path) -> None:
    async with asyncio.timeout(8):
        while not await asyncio.to_thread(file.exists):
            pass


async def until_draining(node: Node) -> None:
    """It is found no longer: that is what a drain begins with."""
    async with asyncio.timeout(8):
        while True:
            try:
                await node.client.request("$SRV.PING.faas", b"", timeout=1)
            except nats.errors.NoRespondersError:
                return


async def test_what_runs_on_a_node_that_drains_is_cancelled(tmp_path: Path) -> None:
    """It may run for ten seconds more: whoever asks is answered, and it stops."""
    write_function(tmp_path / "functions", "holds", HOLDS)
    async with running(tmp_path / "functions", tmp_path / "state", "--environments", "current") as node:
        mark = tmp_path / "runs"
        async with faas.connect(node.info["nats"]) as client:
            ticket = await client.submit("holds", str(mark))
            await until_there(mark)
            node.process.send_signal(signal.SIGTERM)
            await until_draining(node)
            answer = await node.client.request(f"faas.cancel.default.holds.{ticket.invocation}", b"", timeout=5)

            assert json.loads(answer.data)["cancelled"]
            assert (await client.outcome(ticket)).outcome == "cancelled"


async def test_a_wildcard_is_no_invocation(tmp_path: Path) -> None:
    """It would be looked up as one, found as another, and stored as the end of none."""
    write_function(tmp_path / "functions", "again", AGAIN)
    quick = ("--environments", "current")
    async with running(tmp_path / "functions", tmp_path / "state", *quick) as node, faas.connect(node.info["nats"]) as client:
        ticket = await client.submit("again", 1)
        while not await node.count("FAAS_OUTCOMES", f"faas.attempt.default.again.{ticket.invocation}"):
            pass
        answer = json.loads((await node.client.request("faas.cancel.default.again.*", b"", timeout=5)).data)

        assert (answer["cancelled"], answer["known"]) == (False, False)
        assert await node.count("FAAS_OUTCOMES", "faas.outcome.>") == 0
        assert await node.count("KV_FAAS_CANCELLED", "$KV.>") == 0
