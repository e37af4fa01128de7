"""What is left of a node that is killed with SIGKILL, and whether its event loop may be uvloop's: nodes in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from processes import marked, wait_until_gone

NODE = '''
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import ENVIRONMENT, PROFILE, invoke_message, load_message
from faas.pool.process import ProcessBackend

HANDLER = """
import os, sys
def handle(event):
    if event == 1:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()", {mark!r}])
            os._exit(0)
        os.wait()
        return os.getpid()
    while True:
        pass
"""

async def main():
    async with ProcessBackend(Path({state!r}), "test-end", on_output=lambda *line: None, isolate={isolate}) as backend:
        sandbox = await backend.start(PROFILE, ENVIRONMENT)
        spare, worker = await sandbox.fork(), await sandbox.fork()
        await worker.load(load_message(HANDLER))
        await worker.invoke(invoke_message(b"1"))
        print("ready", flush=True)
        {then}

{run}
'''


def node(tmp_path: Path, mark: str, *, isolate: bool = True, then: str, run: str = "asyncio.run(main())") -> str:
    tests = str(Path(__file__).parent)
    return NODE.format(tests=tests, mark=mark, state=str(tmp_path / mark), isolate=isolate, then=then, run=run)


@pytest.mark.parametrize("isolate", [True, False], ids=["process", "process-plain"])
def test_a_node_that_is_killed_leaves_no_process(tmp_path: Path, isolate: bool) -> None:
    """Nobody is left to clean up: the kernel must, busy handlers and daemons in new sessions included."""
    mark = f"mark-{uuid.uuid4()}"
    program = node(tmp_path, mark, isolate=isolate, then="await worker.invoke(invoke_message(b'2'))")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while said != "ready\n":
            said = process.stdout.readline()
            assert said, "the node ended before it was ready"
        assert len(marked(mark)) >= 3  # the node itself, its boot process and template, and the daemon
        process.kill()
        process.wait()

    assert wait_until_gone(mark) == set()


PRELOADING = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import ENVIRONMENT
from faas.model import RuntimeProfile
from faas.pool.process import ProcessBackend

async def main():
    profile = RuntimeProfile(name="plain", warmup="__import__('time').sleep(600)")
    async with ProcessBackend(Path({state!r}), "test-end", on_output=lambda *line: None) as backend:
        await backend.prepare(profile, ENVIRONMENT)

asyncio.run(main())
"""


def test_a_node_that_is_killed_takes_a_template_along_that_still_preloads(tmp_path: Path) -> None:
    """An import of torch, or a warm-up that never ends, would go on for nobody."""
    mark = f"mark-{uuid.uuid4()}"
    program = PRELOADING.format(tests=str(Path(__file__).parent), state=str(tmp_path / mark))
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while len(marked(mark)) < 4:  # the node, its boot process, the template, and the child that tries the warm-up
            assert process.poll() is None, "the node ended before it was asked to"
        process.kill()
        process.wait()

    assert wait_until_gone(mark) == set()


def test_uvloop_does_as_well(tmp_path: Path) -> None:
    """A node runs on it: its transports and its subprocesses are not asyncio's."""
    program = node(tmp_path, f"mark-{uuid.uuid4()}", then="worker.retire()", run="import uvloop; uvloop.run(main())")

    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=9, check=False)

    assert done.returncode == 0, done.stderr
    assert "ready\n" in done.stdout
    assert done.stderr == ""
