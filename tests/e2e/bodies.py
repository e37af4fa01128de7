"""Functions for large bodies, a node that serves them, and how full the bucket is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from node import SHORT_LEASE, Node, running, write_function

MIB = 2**20
BUCKET = "FAAS_PAYLOADS"
STREAM = f"OBJ_{BUCKET}"
REQUIRED = {"ce-specversion": "1.0", "ce-source": "/test", "ce-type": "t"}
FUNCTIONS = {
    "back": ("def handle(event: bytes) -> bytes:\n    return event[::-1]\n", '[[trigger]]\nsubject = "large.back"\n'),
    "size": (
        "def handle(event: bytes):\n    return len(event)\n",
        '[[trigger]]\nsubject = "large.size"\n[[trigger]]\nsubject = "large.made"\n',
    ),
    "made": (
        "def handle(event: int):\n    return b'm' * event\n",
        '[[trigger]]\nsubject = "large.make"\n[output]\npublish = "large.made"\n',
    ),
    "json": ("def handle(event: int):\n    return {'text': 'j' * event}\n", ""),
    "items": ("def handle(event: int):\n    for _ in range(event):\n        yield b'i' * 100_000\n", ""),
    "small": ("def handle(event: bytes):\n    return len(event)\n", '[[trigger]]\nsubject = "large.small"\n[limits]\npayload = "2MiB"\n'),
    "much": ("def handle(event: int):\n    return b'm' * event\n", '[limits]\npayload = "2MiB"\n'),
    "seen": ("import faas\ndef handle(event: faas.Event):\n    return [len(event.data), event.extensions, event.datacontenttype]\n", ""),
    "again": (
        "import os, pathlib\ndef handle(event: bytes):\n    mark = pathlib.Path(os.environ['MARK'])\n    if mark.exists():\n"
        "        return b'2' * len(event)\n    mark.touch()\n    os._exit(1)\n",
        '[[trigger]]\nsubject = "large.again"\n[retry]\nbackoff = "10ms"\n',
    ),
    "second": (
        "import os, pathlib\ndef handle(event: bytes):\n    mark = pathlib.Path(os.environ['MARK'] + '2')\n    if mark.exists():\n"
        "        return len(event)\n    mark.touch()\n    raise ValueError('first')\n",
        "",
    ),
    "cuts": (
        "import os, threading, pathlib\nfrom faas.worker import wire\ndef handle(event):\n    write = wire._write\n"
        "    def cut(directory, file, body):\n        write(directory, file, body)\n        os.truncate(os.path.join(directory, file), 10)\n"
        "    wire._write = cut\n    return b'x' * (2 * 2**20)\n",
        "[retry]\nmax_attempts = 1\n",
    ),
}


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[Node]:
    """A node with these functions."""
    for name, (code, spec) in FUNCTIONS.items():
        write_function(root / "functions", name, code, f'{spec}[env]\nMARK = "{root / "mark"}"\n')
    async with running(root / "functions", root / "state", environ=SHORT_LEASE) as node:
        await node.watch()
        yield node


async def used_bytes(node: Node) -> int:
    return int((await node.client.jetstream().stream_info(STREAM)).state.bytes)


@asynccontextmanager
async def nearly_full(node: Node) -> AsyncIterator[None]:
    """The bucket has a megabyte left while the block runs."""
    config = (await node.client.jetstream().stream_info(STREAM)).config.as_dict()
    update = f"$JS.API.STREAM.UPDATE.{STREAM}"
    await node.client.request(update, json.dumps({**config, "max_bytes": await used_bytes(node) + MIB}).encode())
    try:
        yield
    finally:
        await node.client.request(update, json.dumps(config).encode())
