"""What a handler may write onto its socket by hand, past the worker's own code: the node refuses what that code would have refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest
from conftest import Make, Printed, invoke_message, load_message, result_of
from processes import wait_for_end

from faas.errors import ProtocolError
from faas.pool.backend import Sandbox
from faas.pool.listener import GREETINGS
from faas.pool.process import ProcessSandbox
from faas.worker import wire

FORGES = "import os, sys\nfrom faas.worker import wire\npeer = sys.stdout._log._send.__self__\n"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("wire.Emit(subject='a.b', id='i', data=b'', content_type='')", "more than 1000 events"),
        ("wire.Chunk(data=b'x' * 999, content_type='')", "items of more than 100000 bytes"),
    ],
    ids=["events", "items"],
)
async def test_a_worker_that_says_more_than_an_attempt_may_is_ended(make: Make, code: str, said: str) -> None:
    """A stream shared with everybody would be full of it, however slowly it is told to go."""
    worker = await make(f"{FORGES}def handle(event):\n    while True:\n        peer.send({code})\n", limit_bytes=100_000)
    with pytest.raises(ProtocolError, match=said):
        await worker.invoke(invoke_message(), on_said=lambda word: None)

    assert await asyncio.to_thread(wait_for_end, worker.pid)


async def test_what_each_attempt_says_is_counted_anew(make: Make) -> None:
    """Else a function that publishes a little each time would end one day."""
    worker = await make("def handle(event, ctx):\n    for n in range(600):\n        ctx.publish('a.b', n)\n    return 1\n")
    heard: list[object] = []
    for _ in range(3):
        assert isinstance(await worker.invoke(invoke_message(), on_said=heard.append), wire.Result)

    assert len(heard) == 1800


@pytest.mark.parametrize("kind", ["os.mkdir(path)", "os.mkfifo(path)", "os.symlink('/etc/passwd', path)"], ids=["folder", "pipe", "link"])
async def test_a_long_answer_that_is_no_file_costs_the_node_no_descriptor(make: Make, kind: str) -> None:
    """One lost with every bad answer, and a patient handler has them all."""
    code = f"{FORGES}def handle(event):\n    path = peer._directory + '/spill-x'\n    {kind}\n    peer.send(wire.Spilled(file='spill-x', size=9))\n"
    worker = await make(code)
    before = descriptors()
    with pytest.raises(ProtocolError, match="cannot be read"):
        await worker.invoke(invoke_message())

    assert descriptors() <= before


async def test_connections_that_say_nothing_are_few(make: Make) -> None:
    """A handler reaches the socket of its sandbox; the descriptors of the node are not for it to use up."""
    worker = await make(
        "import os, socket\nheld = []\ndef handle(event):\n    os.chdir('..')\n    for _ in range(event):\n        peer = socket.socket(socket.AF_UNIX)\n"
        "        peer.connect('socket')\n        held.append(peer)\n    return len(held)\n"
    )
    before = descriptors()
    held = await result_of(worker, invoke_message(b"400"))

    assert held == 400
    while descriptors() > before + GREETINGS:  # one that is turned away is closed a turn later
        await result_of(worker, invoke_message(b"0"))


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit", "KeyboardInterrupt"])
async def test_a_stream_of_the_handlers_own_that_cannot_be_flushed_harms_no_answer(make: Make, error: str) -> None:
    """What it prints to is the author's; the answer was there already."""
    code = f"import sys\nclass Own:\n    def write(self, text):\n        return 1\n    def flush(self):\n        raise {error}\n"
    worker = await make(f"{code}def handle(event):\n    sys.stdout = Own()\n    return 7\n")

    assert await result_of(worker, invoke_message()) == 7


async def test_programs_that_set_up_their_output_print_all_the_same(make: Make, printed: Printed) -> None:
    """To ask for UTF-8 and to wrap the bytes below are what many scripts begin with; what is printed afterwards must not be lost."""
    worker = await make(
        "import io, json, sys\ndef handle(event):\n    sys.stdout.reconfigure(encoding='utf-8', line_buffering=True)\n"
        "    wrapped = io.TextIOWrapper(sys.stdout.buffer)\n    wrapped.write('first\\n')\n    del wrapped\n    print('second', end='')\n"
        "    sys.stdout.buffer.write(b'third\\n')\n    return json.dumps(sys.stdout.line_buffering)\n"
    )
    answer = await result_of(worker, invoke_message())
    await printed.until(worker, 3)

    assert json.loads(str(answer)) is True
    assert sorted(printed.of(worker)) == ["first", "second", "third"]


@pytest.mark.parametrize("role", ["zygote", "stdout", "worker"])
async def test_nobody_but_a_child_of_its_zygote_is_taken_for_a_worker(sandbox: Sandbox, role: str) -> None:
    """A function of another sandbox runs as the same user and reaches this socket: the next load would bring it another function's secrets."""
    assert isinstance(sandbox, ProcessSandbox)
    os.kill(sandbox.pid, signal.SIGSTOP)  # so that the one that is waited for comes later
    try:
        forking = asyncio.create_task(sandbox.fork())
        await asyncio.sleep(0)
        (id,) = sandbox._births
        folder = os.open(sandbox.directory, os.O_RDONLY)
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{wire.SOCKET_NAME}")
        os.close(folder)
        writer.write(wire.encode(wire.Hello(role=role, id=sandbox.id if role == "zygote" else id)))
        assert await reader.read() == b""
        writer.close()
    finally:
        os.kill(sandbox.pid, signal.SIGCONT)

    worker = await forking

    assert worker.pid != os.getpid()
    assert await worker.load(load_message("def handle(event):\n    return 1\n"))
