"""A part of this suite once more, each node on a server that lets it do what `faas nats-config` gives nodes, and nothing else.

All of it runs so with FAAS_TEST_PERMISSIONS=1 pytest tests/e2e.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import permitted
import pytest
from permitted import Permitted

from faas.config import TenantConfig

HERE = Path(__file__).resolve().parent
CHOSEN = ["test_exits.py", "test_gateway.py", "test_gateway_streams.py", "test_own_streams.py", "test_speech.py", "test_large.py"]
"""Every end, every way over HTTP, streams of others, items and events of handlers, the object store: each thing that a node does on the bus."""


@pytest.mark.timeout(400)
@pytest.mark.skipif(permitted.ASKED, reason="all of it runs so already")
@pytest.mark.parametrize("half", [CHOSEN[:3], CHOSEN[3:]], ids=["doors", "streams"])
async def test_a_node_needs_no_right_that_it_is_not_given(half: list[str]) -> None:
    """A right that is missing is a timeout on somebody else's bus, weeks later; one refusal fails the test that it happened in."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", *(str(HERE / name) for name in half),
        env={**os.environ, "FAAS_TEST_PERMISSIONS": "1"}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()

    assert process.returncode == 0, said.decode()[-4000:]


async def test_what_a_node_is_refused_is_seen(tmp_path: Path) -> None:
    """The check of all these runs: it may not be blind."""
    server = Permitted(tmp_path, [TenantConfig(name="default", subscribe=(), publish=())])
    line = '[1] 2026/11/24 08:00:00.0 [ERR] 127.0.0.1:1 - cid:5 - "v2.16.0:python3:faas gpu-1" - "$G/nkey:UA" - Publish Violation - Subject "a.b"'
    (tmp_path / "server.log").write_text(f"{line}\n{line.replace('faas gpu-1', 'somebody')}\n")

    assert server.violations() == ['Publish Violation - Subject "a.b"']
