"""Functions that tell how often they ran, for the tests of idempotency keys, and what these look at."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from nats.aio.msg import Msg
from node import head, write_function

COUNTS = (
    "import pathlib, uuid\ndef handle(event: dict):\n    folder = pathlib.Path(event['folder'])\n"
    "    (folder / uuid.uuid4().hex).touch()\n    return {'ran': len(list(folder.iterdir())), 'n': event.get('n', 0)}\n"
)
WAITS = (
    "import pathlib, time, uuid\ndef handle(event: dict):\n    folder = pathlib.Path(event['folder'])\n    (folder / uuid.uuid4().hex).touch()\n"
    "    while not (folder.parent / 'go').exists():\n        time.sleep(0.01)\n    return 'went'\n"
)
FAILS = "import pathlib, uuid\ndef handle(event: dict):\n    (pathlib.Path(event['folder']) / uuid.uuid4().hex).touch()\n    raise ValueError('no')\n"
LARGE = "def handle(event: bytes, ctx):\n    return event + ctx.invocation_id.encode()\n"
KEY = "Faas-Idempotency-Key"


def functions_in(root: Path) -> Path:
    for name, code, spec in (
        ("counts", COUNTS, ""),
        ("fleeting", COUNTS, '[[trigger]]\nsubject = "keys.fleeting"\ndelivery = "at-most-once"\n'),
        ("waits", WAITS, '[limits]\ntimeout = "60s"\n'),
        ("fails", FAILS, ""),
        ("large", LARGE, ""),
    ):
        write_function(root / "functions", name, code, spec)
    return root / "functions"


def payload(folder: Path, **more: object) -> bytes:
    return json.dumps({"folder": str(folder), **more}).encode()


def runs(folder: Path) -> int:
    return len(list(folder.iterdir()))


async def began(folder: Path) -> None:
    """Until a function has begun to run."""
    async with asyncio.timeout(8):
        while not await asyncio.to_thread(runs, folder):
            pass


def same(one: Msg, other: Msg) -> bool:
    """Whether two answers are one outcome, in every header and byte."""
    return head(one) == head(other) and one.data == other.data
