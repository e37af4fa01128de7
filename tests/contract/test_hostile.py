"""What a handler may do to its worker, and what the node and its other workers must not notice of it."""

from __future__ import annotations

import asyncio
import signal
import uuid
from typing import cast

import pytest
from conftest import ENVIRONMENT, PROFILE, Make, death_of, invoke_message, load_message, result_of
from processes import marked, wait_for_end, wait_until_gone

from faas.errors import ProtocolError, WorkerLost
from faas.pool.backend import Backend, Sandbox
from faas.pool.worker import Worker
from faas.worker import wire


async def loss_of(worker: Worker, data: bytes = b"1") -> WorkerLost:
    with pytest.raises(WorkerLost) as caught:
        await worker.invoke(invoke_message(data))
    return caught.value


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\ndef handle(event):\n    os._exit(3)\n", "exited with code 3"),
        ("import os\ndef handle(event):\n    os._exit(0)\n", "exited with code 0"),
        ("import os, signal\ndef handle(event):\n    os.kill(os.getpid(), signal.SIGKILL)\n", "signal 9 (SIGKILL)"),
        ("import os\ndef handle(event):\n    os.abort()\n", "signal 6 (SIGABRT)"),
        ("import os, signal\ndef handle(event):\n    os.kill(os.getpid(), signal.SIGUSR1)\n    signal.pause()\n", "signal 10 (SIGUSR1)"),
        ("import ctypes\ndef handle(event):\n    ctypes.string_at(0)\n", "signal 11 (SIGSEGV)"),
    ],
)
async def test_a_handler_that_ends_its_process_is_lost_and_it_is_said_how(make: Make, code: str, said: str) -> None:
    """Whoever reads the outcome can tell an exit from a crash and a crash from a kill."""
    worker = await make(code)
    lost: list[Worker] = []
    worker.on_lost = lost.append

    error = await loss_of(worker)

    assert said in str(error)
    assert not error.oom
    assert lost == [worker]
    assert not worker.give_back()


async def test_a_worker_that_dies_leaves_its_neighbours_alone(sandbox: Sandbox, make: Make) -> None:
    """They share a zygote, and nothing else."""
    doomed = await make("import os\ndef handle(event):\n    os._exit(3)\n")
    neighbour = await make("def handle(event):\n    return event\n", version="v2")

    await loss_of(doomed)

    assert await result_of(neighbour, invoke_message(b"1")) == 1
    assert isinstance(await (await sandbox.fork()).load(load_message("def handle(event):\n    return 1\n")), wire.Loaded)


async def test_a_handler_that_hangs_in_native_code_is_ended_from_outside(make: Make) -> None:
    """Python cannot interrupt native code, and a handler may ignore every signal that can be ignored."""
    worker = await make(
        "import signal, threading\nfor number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):\n    signal.signal(number, signal.SIG_IGN)\n"
        "def handle(event):\n    print('running')\n    (lambda lock: (lock.acquire(), lock.acquire()))(threading.Lock())\n"
    )
    pid = worker.pid
    try:
        async with asyncio.timeout(0.2):
            await worker.invoke(invoke_message())
    except TimeoutError:
        worker.kill()

    assert worker.state == "dead"
    await death_of(worker)
    assert await asyncio.to_thread(wait_for_end, pid)


async def test_a_killed_worker_can_never_be_idle_again(make: Make) -> None:
    """Its state is unknown; warm reuse would carry one attempt's failure to the next."""
    worker = await make("def handle(event):\n    return 1\n")
    await worker.invoke(invoke_message())

    worker.kill()

    assert not worker.give_back()
    worker.lease()
    assert not worker.give_back()
    await death_of(worker)
    worker.lease()
    assert not worker.give_back()
    with pytest.raises(WorkerLost):
        await worker.invoke(invoke_message())


async def test_the_clocks_of_a_worker_outlive_it(make: Make) -> None:
    """Usage of an attempt that was killed is billed by what is known of it."""
    worker = await make("import os\ndef handle(event):\n    sum(range(3_000_000))\n    data = bytearray(60 * 2**20)\n    os._exit(1)\n")
    before_us = worker.cpu_us()

    await loss_of(worker)

    assert worker.cpu_us() > before_us + 1000
    assert worker.memory_peak_bytes() > 60 * 2**20


# ---------------------------------------------------------------- what a handler starts

DAEMON = """
import os, subprocess, sys
def handle(event):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            os.execv(sys.executable, [sys.executable, "-c", "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; signal.pause()", MARK])
        os._exit(0)
    os.wait()
    return os.getpid()
"""


@pytest.mark.parametrize("end", ["kill", "retire", "exit", "sandbox"])
async def test_a_daemon_dies_with_its_worker_however_that_ends(sandbox: Sandbox, make: Make, end: str) -> None:
    """A double fork into a new session escapes process groups and waits; it must not escape the node."""
    mark = f"mark-{uuid.uuid4()}"
    worker = await make(f"MARK = {mark!r}\n{DAEMON}\ndef second():\n    pass\n")
    await result_of(worker, invoke_message())
    while not marked(mark):  # until it has become itself
        await asyncio.to_thread(wait_until_gone, mark, 0.05)

    match end:
        case "kill":
            worker.kill()
        case "retire":
            worker.retire()
        case "exit":
            worker._transport.close()  # its control socket closes: it exits by itself
        case "sandbox":
            sandbox.kill()
    await death_of(worker)

    assert await asyncio.to_thread(wait_until_gone, mark) == set()


async def test_a_fork_bomb_ends_with_its_worker(make: Make, backend: Backend) -> None:
    """With the pids limit it stays small; without it the kill must still find everything."""
    if "pids" not in backend.enforced:
        pytest.skip("pids cannot be limited on this machine")
    mark = f"mark-{uuid.uuid4()}"
    worker = await make(
        "import os, sys, signal\ndef handle(event):\n    count = 0\n    while True:\n        try:\n            if os.fork() == 0:\n"
        f"                os.setsid()\n                os.execv(sys.executable, [sys.executable, '-c', 'import signal; signal.pause()', '{mark}'])\n"
        "            count += 1\n        except OSError:\n            return count\n"
    )
    worker.limit(memory_bytes=2**30, cpus=1, pids=20)

    count = await result_of(worker, invoke_message())

    assert cast(int, count) < 20
    worker.kill()
    await death_of(worker)
    assert await asyncio.to_thread(wait_until_gone, mark) == set()


async def test_the_memory_limit_ends_a_worker_and_is_named(make: Make, backend: Backend) -> None:
    """`oom` is a reason of its own: what helps is more memory, not another try."""
    if "memory" not in backend.enforced:
        pytest.skip("memory cannot be limited on this machine")
    worker = await make("def handle(event):\n    return len(bytearray(400 * 2**20))\n")
    worker.limit(memory_bytes=64 * 2**20, cpus=1, pids=50)

    error = await loss_of(worker)

    assert error.oom
    assert "memory limit" in error.exit


async def test_a_kill_is_not_taken_for_the_memory_limit(make: Make) -> None:
    """Both are a SIGKILL."""
    worker = await make("import os, signal\ndef handle(event):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    worker.limit(memory_bytes=256 * 2**20, cpus=1, pids=50)

    assert not (await loss_of(worker)).oom


# ---------------------------------------------------------------- the control socket

GARBAGE = """
import os, socket
def handle(event):
    for descriptor in range(3, 256):
        try:
            control = socket.socket(fileno=os.dup(descriptor))
            if control.getpeername() is not None and control.family == socket.AF_UNIX:
                control.sendall(bytes(event))
        except OSError:
            pass
    return 1
"""


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x04\xff\xff\xff\xff",
        b"\x00\x01\x10\x01",
        wire.encode(wire.Hello(role="worker", id="w1")),
        wire.encode(wire.Loaded(load_us=1, cpu_us=1, memory_peak_bytes=1)),
        wire.encode(wire.Spilled(file="../../../../../../../../etc/passwd", size=10)),
        wire.encode(wire.Spilled(file="spill-x", size=2**40)),
        wire.encode(wire.Exited(worker="w1", code=0, cpu_us=0, memory_peak_bytes=0)),
    ],
    ids=["length", "msgpack", "just-above", "hello", "loaded", "spilled-elsewhere", "spilled-huge", "exited"],
)
async def test_what_is_no_answer_on_the_control_socket_is_a_protocol_error(make: Make, frame: bytes) -> None:
    """A handler can find the descriptor; what it writes there must reach nobody but itself."""
    worker = await make(GARBAGE)

    with pytest.raises(ProtocolError):
        await worker.invoke(invoke_message(str(list(frame)).encode()))

    assert worker.state == "dead"
    assert not worker.give_back()
    await death_of(worker)


async def test_an_answer_that_nobody_asked_for_ends_an_idle_worker(make: Make) -> None:
    """It would otherwise be taken for the answer to the next event, perhaps another tenant's."""
    worker = await make(
        "import threading, time\nimport socket, os\n"
        + GARBAGE.replace("def handle(event):", "def spray(event):")
        + "def handle(event):\n    gate = os.path.join(os.getcwd(), 'gate')\n    os.mkfifo(gate)\n"
        "    threading.Thread(target=lambda: (open(gate).read(), spray(event))).start()\n    return gate\n"
    )
    extra = wire.encode(wire.Result(body=b"forged", content_type="text/plain", run_us=1, cpu_us=1, memory_peak_bytes=1))
    gate = cast(str, await result_of(worker, invoke_message(str(list(extra)).encode())))
    assert worker.give_back()
    gone = asyncio.Event()
    worker.on_lost = lambda lost: gone.set()

    def open_gate() -> None:
        with open(gate, "w"):
            pass

    await asyncio.to_thread(open_gate)

    await gone.wait()
    assert worker.state == "dead"
    with pytest.raises(ProtocolError):
        await worker.invoke(invoke_message())


async def test_a_handler_that_closes_its_control_socket_is_lost(make: Make) -> None:
    """It runs on, but can never answer: waiting for its timeout would only cost time."""
    worker = await make("import os, time\ndef handle(event):\n    os.closerange(3, 256)\n    time.sleep(60)\n")

    await loss_of(worker)

    await death_of(worker)
    assert await asyncio.to_thread(wait_for_end, worker.pid)


async def test_a_stranger_on_the_sandboxes_socket_is_turned_away(make: Make) -> None:
    """A handler can connect as often as it likes; only what the node waits for is heard."""
    worker = await make(
        "import glob, os, socket\ndef handle(event):\n    said = []\n    os.chdir('..')\n    for hello in event:\n"
        "        peer = socket.socket(socket.AF_UNIX)\n        peer.connect('socket')\n        peer.sendall(bytes(hello))\n"
        "        try:\n            said.append(peer.recv(1).decode())\n        except ConnectionResetError:\n            said.append('')\n    return said\n"
    )
    hellos = [
        wire.encode(wire.Hello(role="worker", id="w1")),
        wire.encode(wire.Hello(role="zygote", id=worker.sandbox_id)),
        wire.encode(wire.Hello(role="stdout", id=worker.id)),
        wire.encode(wire.Result(body=b"", content_type="", run_us=0, cpu_us=0, memory_peak_bytes=0)),
        b"\xff\xff\xff\xff",
    ]

    said = await result_of(worker, invoke_message(str([list(hello) for hello in hellos]).encode()))

    assert said == [""] * len(hellos)


async def test_signals_to_the_zygote_end_its_sandbox_and_nothing_else(backend: Backend, sandbox: Sandbox, make: Make) -> None:
    """A sandbox whose zygote is gone cannot fork; the pool must hear of it."""
    worker = await make("def handle(event):\n    return 1\n")
    other = await backend.start(PROFILE, ENVIRONMENT)
    signal.pidfd_send_signal(sandbox._pidfd, signal.SIGKILL)  # type: ignore[attr-defined]

    await death_of(worker)

    assert not sandbox.alive
    assert other.alive
    other.kill()


async def test_a_child_that_returns_from_the_handler_too_does_not_answer(make: Make) -> None:
    """`os.fork` without an exit in the child: one answer, and the worker goes on."""
    worker = await make(
        "import os\ndef handle(event):\n    child = os.fork()\n    if child:\n        os.waitpid(child, 0)\n    return 'parent' if child else 'child'\n"
    )
    answers = [await worker.invoke(invoke_message()) for _ in range(3)]

    assert [getattr(answer, "body", answer) for answer in answers] == [b'"parent"'] * 3
