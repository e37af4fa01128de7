"""One node for the tests that only look at exits: started once, with a function for each way to end."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from node import Node, running, write_function

from faas.environments.build import Builder
from faas.environments.profile import load_profile, shipped_functions, shipped_runtimes
from faas.model import Environment

FUNCTIONS: dict[str, tuple[str, str]] = {
    "double": (
        "import msgspec\nclass In(msgspec.Struct):\n    n: int\ndef handle(event: In, ctx):\n    return {'n2': event.n * 2, 'attempt': ctx.attempt}\n",
        '[[trigger]]\nsubject = "exits.double"\n[output]\npublish = "exits.doubled"\n',
    ),
    "raises": ("def handle(event):\n    raise ValueError('no such picture')\n", '[[trigger]]\nsubject = "exits.raises"\n'),
    "titles": ("def handle(event):\n    raise ValueError('\\x1b]0;owned\\x07\\x1b[2Jgone')\n", ""),
    "rejects": ("import faas\ndef handle(event):\n    raise faas.Reject('not a picture')\n", '[[trigger]]\nsubject = "exits.rejects"\n'),
    "hangs": (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef handle(event):\n    while True:\n        pass\n",
        '[[trigger]]\nsubject = "exits.hangs"\n[limits]\ntimeout = "300ms"\n',
    ),
    "dies": (
        "import os, signal\ndef handle(event):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        '[[trigger]]\nsubject = "exits.dies"\n[retry]\nmax_attempts = 2\nbackoff = "1ms"\n',
    ),
    "badload": ("import nosuchmodule\ndef handle(event):\n    return 1\n", '[[trigger]]\nsubject = "exits.badload"\n'),
    "slowload": (
        "import time\ntime.sleep(60)\ndef handle(event):\n    return 1\n",
        '[[trigger]]\nsubject = "exits.slowload"\n[limits]\nload_timeout = "300ms"\n',
    ),
    "notjson": ("def handle(event):\n    return object()\n", '[[trigger]]\nsubject = "exits.notjson"\n'),
    "large": ("def handle(event: int):\n    return b'x' * event\n", '[[trigger]]\nsubject = "exits.large"\n[limits]\npayload = "100KiB"\n'),
    "again": (
        "import faas\ndef handle(event, ctx):\n    if ctx.attempt < 3:\n        raise faas.Retry(0.01)\n    return ctx.attempt\n",
        '[[trigger]]\nsubject = "exits.again"\n',
    ),
    "always": (
        "import faas\ndef handle(event):\n    raise faas.Retry(0.001)\n",
        '[[trigger]]\nsubject = "exits.always"\n[retry]\nmax_attempts = 2\n',
    ),
    "flaky": (
        "def handle(event, ctx):\n    if ctx.attempt == 1:\n        raise OSError('upstream away')\n    return 'there'\n",
        '[[trigger]]\nsubject = "exits.flaky"\n[retry]\non = ["error"]\nbackoff = "1ms"\n',
    ),
    "slow": (
        "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n",
        '[[trigger]]\nsubject = "exits.slow"\n[scale]\nmax_workers = 1\n[limits]\nqueue_timeout = "700ms"\n',
    ),
    "patient": (
        "import faas\ndef handle(event, ctx):\n    if ctx.attempt == 1:\n        raise faas.Retry(3600)\n    return ctx.attempt\n",
        '[[trigger]]\nsubject = "exits.patient"\n[limits]\nqueue_timeout = "3s"\n',
    ),
    "flooded": (
        "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n",
        '[[trigger]]\nsubject = "exits.flooded"\ndelivery = "at-most-once"\n[scale]\nmax_workers = 1\n[limits]\nqueue_timeout = "1s"\n',
    ),
    "quiet": ("def handle(event):\n    raise ValueError('x')\n", '[[trigger]]\nsubject = "exits.quiet"\n[retry]\ndead_letter = false\n'),
    "fast": (
        "def handle(event):\n    return event\n",
        '[[trigger]]\nsubject = "exits.fast"\ndelivery = "at-most-once"\n[output]\npublish = "exits.fast.out"\n',
    ),
    "badoom": (
        "def handle(event):\n    data = bytearray(400 * 2**20)\n    return len(data)\n",
        '[[trigger]]\nsubject = "exits.badoom"\n[limits]\nmemory = "64MiB"\n[retry]\nmax_attempts = 1\n',
    ),
    "garbage": (
        "import os\ndef handle(event):\n    for fd in range(3, 64):\n        try:\n            os.write(fd, b'\\xff' * 64)\n        except OSError:\n            pass\n    return 1\n",
        '[[trigger]]\nsubject = "exits.garbage"\n[retry]\nmax_attempts = 1\n',
    ),
    "left": ("def handle(event: int):\n    return event + 1\n", '[[trigger]]\nsubject = "exits.both"\n'),
    "right": ("def handle(event: int):\n    return event - 1\n", '[[trigger]]\nsubject = "exits.both"\n'),
    "longhead": (
        "import faas\ndef handle(event):\n    return faas.Result(b'x', content_type='a' * 40_000)\n",
        '[[trigger]]\nsubject = "exits.longhead"\n',
    ),
    "noenv": ("def handle(event):\n    return 1\n", 'runtime = "broken"\n[[trigger]]\nsubject = "exits.noenv"\n'),
}


def write_runtimes(root: Path) -> Path:
    """The shipped `standard` profile, and one whose lock cannot be installed."""
    shipped = Path(__file__).resolve().parents[2] / "runtimes" / "standard"
    (root / "standard").mkdir(parents=True)
    for file in shipped.iterdir():
        (root / "standard" / file.name).write_bytes(file.read_bytes())
    (root / "broken").mkdir()
    (root / "broken" / "profile.toml").write_text('version = "1"\n')
    (root / "broken" / "requirements.in").write_text("msgspec\n")
    (root / "broken" / "requirements.lock").write_text("msgspec==0.19.0 --hash=sha256:" + "0" * 64 + "\n")
    return root


@pytest.fixture(scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with a function for every exit."""
    root = tmp_path_factory.mktemp("exits")
    for name, (code, spec) in FUNCTIONS.items():
        write_function(root / "functions", name, code, spec)
    runtimes = write_runtimes(root / "runtimes")
    async with running(root / "functions", root / "state", "--runtimes", str(runtimes), environ={"FAAS_BUS__ACK_WAIT": "2s"}) as node:
        await node.watch()
        yield node


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the tests that need torch: what one of them builds, the others find."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
async def builder(state: Path) -> AsyncIterator[Builder]:
    """It builds where a node on the same state folder looks."""
    async with Builder(state / "environments") as builder:
        yield builder


@pytest.fixture(scope="session")
async def ai(builder: Builder) -> Environment:
    """The environment of the profile `ai`, built once per run."""
    return await builder.ensure(load_profile(shipped_runtimes() / "ai"))


@pytest.fixture(scope="session")
async def examples(state: Path, ai: Environment) -> AsyncIterator[Node]:
    """A node with the example functions."""
    async with running(shipped_functions(), state, "--runtimes", str(shipped_runtimes())) as node:
        await node.watch()
        yield node
