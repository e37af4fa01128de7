"""A node that stops while a synchronous call is between two of its attempts."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from node import end, head, running, write_function

CODE = """import time, faas
def handle(event: str, ctx):
    if event:
        open(event, "w").close()
        time.sleep(3)
        return "held"
    raise faas.Retry(0.5)
"""

pytestmark = pytest.mark.timeout(40)


async def test_a_call_that_has_had_an_attempt_is_not_asked_to_begin_again(tmp_path: Path) -> None:
    """An answer 503 says that nothing was started, and its caller would have another node run it a second time."""
    write_function(tmp_path / "functions", "once", CODE, "[scale]\nmax_workers = 1\n")
    mark = tmp_path / "held"
    async with running(tmp_path / "functions", tmp_path / "state", "--environments", "current") as node:
        calling = asyncio.ensure_future(node.request("once", b"", wait_s=20))
        holding = asyncio.ensure_future(node.request("once", str(mark).encode(), wait_s=20))  # starts in its back-off
        while not await node.count("FAAS_USAGE", "faas.usage.default.once"):
            pass  # its first attempt is accounted when the second is asked for
        node.process.send_signal(signal.SIGTERM)
        answer, held = await calling, await holding

    assert end(held) == ("succeeded", "")
    assert end(answer) == ("failed", "error")
    assert head(answer)["Faas-Attempt"] == "1"
