"""A node that has no file descriptors left: F34. What needs one fails and says so; the node goes on, and so does what needs none."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from node import ECHO, end, running, write_function

CALLS, SPARE = 40, 12
ENDS = {("succeeded", ""), ("crashed", "worker_lost")}

pytestmark = pytest.mark.timeout(60)


async def test_f34_without_descriptors_calls_end_with_an_error_and_the_node_lives(tmp_path: Path) -> None:
    """Each worker has a socket; a burst of cold starts meets the limit, and every caller has an answer all the same."""
    write_function(tmp_path / "functions", "echo", ECHO, "[scale]\nmax_workers = 64\n")
    environ = {"FAAS_POOL__SLOTS": "64"}
    async with running(tmp_path / "functions", tmp_path / "state", "--environments", "current", environ=environ) as node:
        assert end(await node.request("echo", b"0", wait_s=20)) == ("succeeded", "")
        limit = len(os.listdir(f"/proc/{node.process.pid}/fd")) + SPARE
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (limit, limit))

        async def call(number: int) -> Msg:
            return await node.request("echo", b"%d" % number, wait_s=30)

        ends = [end(answer) for answer in await asyncio.gather(*(call(number) for number in range(CALLS)))]
        held = len(os.listdir(f"/proc/{node.process.pid}/fd"))
        afterwards = end(await node.request("echo", b"1", wait_s=20))

    assert set(ends) <= ENDS
    assert ("succeeded", "") in ends
    assert held <= limit
    assert afterwards == ("succeeded", "")
    assert node.process.returncode == 0
