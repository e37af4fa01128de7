"""What the tests of the registry share: the verbs as programs call them, and what a node says that it serves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from node import Node, command, end, head


async def faas(node: Node, *arguments: str, fails: bool = False) -> Any:
    """What a verb prints as JSON, or the sentence that it fails with."""
    code, out, err = await command(*arguments, "--json", "--nats", node.info["nats"])
    assert code == (1 if fails else 0), err
    return json.loads(err)["detail"] if fails else json.loads(out)


async def deploy(node: Node, folder: Path, *names: str) -> None:
    """Deploy, and wait until the node serves that."""
    for deployed in await faas(node, "deploy", str(folder), *names):
        await served(node, deployed["name"], deployed["version"])


async def listed(node: Node, name: str) -> dict[str, Any] | None:
    """How the node itself lists a function."""
    answer = await node.client.request(f"faas.node.{node.info['node']}.functions", b"", timeout=5)
    return next((report for report in json.loads(answer.data) if report["name"] == name), None)


async def served(node: Node, name: str, version: str | None) -> None:
    """Wait until the node serves this version, None: no longer serves it."""
    async with asyncio.timeout(8):
        while ((report := await listed(node, name)) and report["version"]) != version:
            pass


async def answer(node: Node, name: str, event: bytes = b"0") -> tuple[bytes, str]:
    """What a function returns, and its version."""
    reply = await node.request(name, event)
    assert end(reply)[0] == "succeeded", reply.data
    return reply.data, head(reply)["Faas-Version"]
