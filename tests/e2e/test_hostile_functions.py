"""Functions that misbehave, on a real node beside one that does not: each gets its outcome in bounded time, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from node import Node, end, head, running, write_function

MARK = f"mark-{uuid.uuid4().hex}"
SOCKETS = "import os, socket, stat\nfds = [fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}') and stat.S_ISSOCK(os.fstat(fd).st_mode)]\n"
DAEMON = (
    "import os, sys\ndef handle(event):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
    f"            os.execv(sys.executable, [sys.executable, '-c', 'import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; signal.pause()', '{MARK}'])\n"
    "        os._exit(0)\n    os.wait()\n    return 'left one behind'\n"
)

# name: (source, outcome, reason)
HOSTILE: dict[str, tuple[str, str, str]] = {
    "garbage": (
        f"{SOCKETS}def handle(event):\n    for fd in fds:\n        os.write(fd, b'\\xff' * 64)\n    return 1\n",
        "crashed",
        "protocol_error",
    ),
    "flood": (
        f"{SOCKETS}def handle(event):\n    data = (2**31).to_bytes(4, 'big') * 250_000\n    while True:\n        for fd in fds:\n            os.write(fd, data)\n",
        "crashed",
        "protocol_error",
    ),
    "closes": (
        f"import time\n{SOCKETS}def handle(event):\n    for fd in fds:\n        os.close(fd)\n    time.sleep(60)\n",
        "crashed",
        "worker_lost",
    ),
    "exits": ("import os\ndef handle(event):\n    os._exit(0)\n", "crashed", "worker_lost"),
    "leaves": ("def handle(event):\n    raise SystemExit(3)\n", "failed", "error"),
    "forks": ("import os\ndef handle(event):\n    os.fork()\n    return os.getpid()\n", "succeeded", ""),
    "bombs": (
        "import os, signal\ndef handle(event):\n    for _ in range(200):\n        try:\n            if os.fork() == 0:\n                signal.pause()\n"
        "        except OSError:\n            break\n    return 'many'\n",
        "succeeded",
        "",
    ),
    "daemon": (DAEMON, "succeeded", ""),
    "deaf": (
        "import signal\nfor n in range(1, 32):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\n"
        "def handle(event):\n    while True:\n        pass\n",
        "timed_out",
        "timeout",
    ),
    "frozen": ("import os, signal\ndef handle(event):\n    os.kill(os.getpid(), signal.SIGSTOP)\n", "timed_out", "timeout"),
    "deletes": (
        "import os, shutil\ndef handle(event):\n    here = os.path.dirname(os.path.realpath(__file__))\n"
        "    shutil.rmtree(os.path.dirname(os.path.dirname(here)), ignore_errors=True)\n    return 'x' * 200_000\n",
        "crashed",
        "worker_lost",
    ),
    "object": ("def handle(event):\n    return object()\n", "failed", "result_invalid"),
    "liar": (
        "class Liar:\n    def __getattribute__(self, name):\n        raise SystemExit\n    def __str__(self):\n        raise SystemExit\n"
        "class Bad(Exception):\n    def __str__(self):\n        raise ValueError\ndef handle(event):\n    raise Bad(Liar())\n",
        "failed",
        "error",
    ),
    "recurses": ("def handle(event):\n    return handle(event)\n", "failed", "error"),
    "deep": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef handle(event):\n    def down(_):\n        return max([1], key=down)\n    return down(0)\n",
        "crashed",
        "worker_lost",
    ),
    "nests": ("def handle(event):\n    a = []\n    for _ in range(100_000):\n        a = [a]\n    return a\n", "failed", "result_invalid"),
    "prints": (
        "import os, sys\ndef handle(event):\n    line = 'x' * 1023\n    for _ in range(100_000):\n        print(line)\n"
        "    block = (line + '\\n').encode() * 64\n    for _ in range(3_000):\n        os.write(1, block)\n    return 'said'\n",
        "succeeded",
        "",
    ),
    "endless": ("def handle(event):\n    while True:\n        yield 'x' * 1000\n", "failed", "result_too_large"),
    "sneaks": (
        "import sys\nfrom faas.worker import wire\ndef handle(event):\n    peer = sys.stdout._log._send.__self__\n"
        "    peer.send(wire.Emit(subject='faas.outcome.default.good.x', id='a', data=b'{}', content_type='a'))\n    return 1\n",
        "failed",
        "error",
    ),
    "steals": (
        "import sys\nfrom faas.worker import wire\ndef handle(event):\n    peer = sys.stdout._log._send.__self__\n"
        "    peer.send(wire.Emit(subject='hostile.good', id='order-17', data=b'1', content_type='a'))\n    return 1\n",
        "failed",
        "error",
    ),
    "memory": ("def handle(event):\n    data = bytearray(900 * 2**20)\n    return len(data)\n", "crashed", "oom"),
}


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root: Path = tmp_path_factory.mktemp("hostile")
    limits = '[limits]\ntimeout = "2s"\nmemory = "300MiB"\npids = 64\n[retry]\nmax_attempts = 1\n'
    for name, (code, _, _) in HOSTILE.items():
        slow = '[limits]\ntimeout = "20s"\nmemory = "300MiB"\n' if name == "prints" else limits
        write_function(root / "functions", name, code, f'[[trigger]]\nsubject = "hostile.{name}"\n{slow}')
    fills = "def handle(event, ctx):\n    for n in range(200):\n        ctx.publish('full.x', n)\n"
    write_function(root / "functions", "fills", fills, '[[trigger]]\nsubject = "hostile.fills"\n')
    write_function(root / "functions", "good", "def handle(event: int):\n    return event + 1\n", '[[trigger]]\nsubject = "hostile.good"\n')
    async with running(root / "functions", root / "state") as started:
        await started.watch()
        yield started


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_code_gets_its_outcome_and_harms_nobody_else(node: Node, name: str) -> None:
    """Whatever runs in a sandbox: its event has one outcome, and the function beside it answers meanwhile and afterwards."""
    _, outcome, reason = HOSTILE[name]
    if reason == "oom" and not can_limit_memory(node):
        pytest.skip("control groups are not writable here, so limits.memory is not enforced")
    hostile = asyncio.ensure_future(node.event(f"hostile.{name}", b"1", id=f"hostile-{name}"))
    answers = 0
    while not hostile.done() or not answers:
        answer = await node.request("good", b"41")
        assert end(answer) == ("succeeded", "")
        answers += answer.data == b"42"
        await asyncio.wait([hostile], timeout=0.05)
    message = hostile.result()

    assert end(message) == (outcome, reason), message.data[:300]
    subject = f"faas.outcome.default.{name}.{head(message)['Faas-Invocation']}"
    while not (stored := await node.count("FAAS_OUTCOMES", subject)):
        pass  # a subscriber hears it a moment before the stream has it
    assert stored == 1
    assert (await node.request("good", b"1")).data == b"2"


@pytest.mark.timeout(60)
async def test_the_same_function_answers_again_after_its_worker_was_killed(node: Node) -> None:
    """A sandbox whose worker is gone makes another; one bad event does not take the function away."""
    for number in range(3):
        message = await node.event("hostile.exits", b"1", id=f"hostile-again-{number}")

        assert end(message) == ("crashed", "worker_lost")


async def test_a_function_whose_folder_was_deleted_is_there_again(node: Node) -> None:
    """Its sandbox is lost with its folder; the next event gets another."""
    for number in range(2):
        message = await node.event("hostile.deletes", b"1", id=f"hostile-deleted-{number}")

        assert end(message) == ("crashed", "worker_lost")


async def test_a_gigabyte_of_output_is_cut_and_said(node: Node) -> None:
    """A log that fills the disk, or the bus, is a denial of service."""
    (outcome,) = node.outcomes.get("hostile-prints") or [await node.event("hostile.prints", b"1", id="hostile-prints")]
    lines: list[str] = []
    while not any("rest is dropped" in line for line in lines):
        stored = await node.stored("FAAS_LOGS", f"faas.log.default.prints.{head(outcome)['Faas-Invocation']}")
        lines = [json.loads(line)["message"] for message in stored for line in message.data.splitlines()]

    assert sum(map(len, lines)) < 80_000


@pytest.mark.timeout(60)
async def test_no_function_can_take_the_id_of_somebody_elses_event(node: Node) -> None:
    """Ids count in the whole stream: an event that comes after one of its own id would be dropped as a repetition."""
    await node.event("hostile.steals", b"1", id="hostile-steals-again")
    outcome = await node.event("hostile.good", b"1", id="order-17")

    assert outcome.data == b"2"


@pytest.mark.timeout(60)
async def test_a_function_that_publishes_to_a_full_stream_fails_at_once(node: Node) -> None:
    """Each of its events would wait on its own, while it holds a slot long after its end."""
    await node.client.jetstream().add_stream(name="FULL", subjects=["full.>"], max_msgs=1, discard="new")
    outcome = await node.event("hostile.fills", b"1", id="hostile-fills", wait_s=20)

    assert end(outcome) == ("failed", "error")
    assert "ctx.publish to full.x" in json.loads(outcome.data)["detail"]


def can_limit_memory(node: Node) -> bool:
    return '"memory"' not in (node.state / "node.log").read_text() and os.access("/sys/fs/cgroup", os.W_OK)


@pytest.mark.timeout(60)
async def test_a_daemon_that_ignores_signals_ends_with_its_worker(tmp_path: Path) -> None:
    """Nothing that a handler started outlives its node."""
    mark = f"mark-{uuid.uuid4().hex}"
    write_function(tmp_path / "functions", "daemon", DAEMON.replace(MARK, mark))
    async with running(tmp_path / "functions", tmp_path / "state") as node:
        assert end(await node.request("daemon", b"1")) == ("succeeded", "")
        while not marked(mark):  # it has been forked, and becomes a program of its own in a moment
            await node.request("daemon", b"1")

    assert not marked(mark)


def marked(mark: str) -> list[int]:
    """Living processes that have the mark on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            if alive and mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
