"""What every backend does with a well-behaved function: spares, loads, invocations, cold starts, state, output."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ENVIRONMENT, PROFILE, Make, Printed, invoke_message, load_message, result_of
from msgspec.structs import replace
from processes import is_alive

from faas.errors import ColdStartFailed, ProtocolError
from faas.model import RuntimeProfile
from faas.pool.backend import Backend, Sandbox
from faas.pool.process import ProcessBackend
from faas.pool.worker import Worker
from faas.worker import wire

# ---------------------------------------------------------------- spare, load, invoke


async def test_a_spare_becomes_the_worker_of_a_function_and_answers(spare: Worker) -> None:
    """The whole way once: everything else is a variation."""
    assert spare.version is None
    spare.lease()

    loaded = await spare.load(load_message("def handle(event):\n    return event * 2\n", version="v7"))

    assert isinstance(loaded, wire.Loaded)
    assert spare.version == "v7"
    assert await result_of(spare, invoke_message(b"21")) == 42


async def test_a_worker_keeps_what_it_loaded_between_invocations(make: Make) -> None:
    """A model is loaded once; that is what a warm worker is for."""
    worker = await make(
        "class Counter:\n    def load(self, ctx):\n        self.n = 100\n    def handle(self, event, ctx):\n        self.n += 1\n        return self.n\n",
        handler="handler:Counter",
    )

    assert [await result_of(worker, invoke_message()) for _ in range(3)] == [101, 102, 103]


async def test_the_result_says_what_it_took(make: Make) -> None:
    """Usage is billed by these figures."""
    worker = await make("def handle(event):\n    data = bytearray(50 * 2**20)\n    return sum(range(300_000))\n")
    cpu_before_us = worker.cpu_us()

    answer = await worker.invoke(invoke_message())

    assert isinstance(answer, wire.Result)
    assert answer.run_us > 0
    assert answer.cpu_us > 0
    assert answer.memory_peak_bytes > 50 * 2**20
    assert worker.cpu_us() > cpu_before_us
    assert worker.memory_peak_bytes() > 50 * 2**20


async def test_an_attempt_does_not_answer_for_the_memory_of_the_one_before(make: Make) -> None:
    """One large event would make every later one as dear."""
    worker = await make("def handle(event):\n    return len(bytearray(event))\n")
    large = await worker.invoke(invoke_message(str(200 * 2**20).encode()))
    small = await worker.invoke(invoke_message(b"1"))

    assert isinstance(large, wire.Result)
    assert isinstance(small, wire.Result)
    assert large.memory_peak_bytes - small.memory_peak_bytes > 150 * 2**20


async def test_a_large_body_goes_both_ways_whole(backend: ProcessBackend, make: Make) -> None:
    """Above 64 KiB bodies take another way than small ones, and must leave no file behind."""
    worker = await make("def handle(event: bytes):\n    return event[::-1]\n")
    body = os.urandom(10 * 2**20)

    answer = await worker.invoke(invoke_message(body, content_type="application/octet-stream"))

    assert isinstance(answer, wire.Result)
    with open(worker.open_body(answer), "rb") as file:  # above 1 MiB it is in a file, so that the node need not hold it
        assert file.read() == body[::-1]
    assert list(backend.run.rglob("spill-*")) == []


async def test_a_body_in_a_file_is_handed_over_there(backend: ProcessBackend, make: Make) -> None:
    """What comes from the object store is never whole in the node's memory."""
    worker = await make("def handle(event: bytes):\n    return len(event)\n")
    file = worker.new_file()
    (Path(worker.directory) / file).write_bytes(b"x" * (3 * 2**20))
    answer = await worker.invoke(replace(invoke_message(b"", content_type="application/octet-stream"), file=file))

    assert isinstance(answer, wire.Result)
    assert answer.body == str(3 * 2**20).encode()
    assert list(backend.run.rglob("spill-*")) == []


@pytest.mark.parametrize("claim", [{"file": "../secret"}, {"file": "spill-missing"}, {"size": 5}])
async def test_a_result_that_is_not_in_its_file_is_no_result(make: Make, claim: dict[str, Any]) -> None:
    """Whoever runs in a sandbox can name any file of the machine."""
    worker = await make("def handle(event: bytes):\n    return event * 2\n")
    answer = await worker.invoke(invoke_message(b"x" * 2**20, content_type="application/octet-stream"))
    assert isinstance(answer, wire.Result)
    with pytest.raises(ProtocolError):
        worker.open_body(replace(answer, **claim))
    assert worker.state == "dead"


async def test_two_sandboxes_work_at_once_and_see_nothing_of_each_other(backend: Backend) -> None:
    """Each function version has a sandbox of its own."""
    first, second = await asyncio.gather(backend.start(PROFILE, ENVIRONMENT), backend.start(PROFILE, ENVIRONMENT))
    workers = await asyncio.gather(first.fork(), second.fork(), second.fork())
    for number, worker in enumerate(workers):
        loaded = await worker.load(
            load_message(f"import os\ndef handle(event):\n    return [{number}, os.getcwd()]\n", version=f"v{number}")
        )
        assert isinstance(loaded, wire.Loaded)

    answers = await asyncio.gather(*(result_of(worker, invoke_message()) for worker in workers))

    assert [answer[0] for answer in answers] == [0, 1, 2]  # type: ignore[index]
    assert answers[0][1] != answers[1][1]  # type: ignore[index]
    assert first.id != second.id


async def test_killing_a_sandbox_ends_its_workers_and_no_others(backend: Backend) -> None:
    """A version that is replaced must not take its successor along."""
    first, second = await backend.start(PROFILE, ENVIRONMENT), await backend.start(PROFILE, ENVIRONMENT)
    doomed, other = await first.fork(), await second.fork()
    lost = asyncio.Event()
    doomed.on_lost = lambda worker: lost.set()

    first.kill()
    first.kill()

    await lost.wait()
    assert not first.alive
    assert isinstance(await other.load(load_message("def handle(event):\n    return 1\n")), wire.Loaded)


async def test_a_state_folder_with_a_very_long_path_serves(tmp_path: Path, printed: Printed) -> None:
    """The address of a Unix socket holds 108 bytes; a home directory deep in a tree has more."""
    state = tmp_path / ("d" * 120) / "state"
    async with ProcessBackend(state, "test-long", on_output=printed.take) as backend:
        worker = await (await backend.start(PROFILE, ENVIRONMENT)).fork()

        assert isinstance(await worker.load(load_message("def handle(event):\n    return 1\n")), wire.Loaded)
        assert await result_of(worker, invoke_message()) == 1


async def test_leaving_the_backend_leaves_nothing_behind(tmp_path: Path, printed: Printed) -> None:
    """A node that is restarted a thousand times must not fill its disk with sockets and scratch folders."""
    async with ProcessBackend(tmp_path, "test-tidy", on_output=printed.take) as backend:
        sandbox = await backend.start(PROFILE, ENVIRONMENT)
        worker = await sandbox.fork()
        await worker.load(load_message("def handle(event):\n    return 1\n"))
        pid = worker.pid

    assert list((tmp_path / "run").iterdir()) == []
    assert not is_alive(pid)


# ---------------------------------------------------------------- cold starts that fail


async def test_a_preload_that_raises_is_a_failed_cold_start_that_shows_why(backend: Backend) -> None:
    """The author of a profile sees the traceback, not a timeout."""
    with pytest.raises(ColdStartFailed, match="nosuchmodule"):
        await backend.prepare(RuntimeProfile(name="bad", preload=("nosuchmodule",)), ENVIRONMENT)

    assert not backend.is_prepared(RuntimeProfile(name="bad"))


async def test_a_warm_up_that_raises_is_a_failed_cold_start_that_shows_why(backend: Backend) -> None:
    """As above, one process further down."""
    sandbox = await backend.start(RuntimeProfile(name="cold", warmup="raise ValueError('no kernel')"), ENVIRONMENT)

    with pytest.raises(ColdStartFailed, match="no kernel"):
        await sandbox.fork()


async def test_a_preload_that_starts_a_thread_is_refused(backend: Backend, tmp_path: Path) -> None:
    """A fork of a process with threads inherits their locks without the threads, and hangs one day."""
    (tmp_path / "threaded.py").write_text("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{ENVIRONMENT.python}" "$@"\n')
    interpreter.chmod(0o755)

    with pytest.raises(ColdStartFailed, match="threads"):
        await backend.prepare(RuntimeProfile(name="threads", preload=("threaded",)), replace(ENVIRONMENT, python=str(interpreter)))


async def test_an_interpreter_that_is_not_there_is_a_failed_cold_start(backend: Backend) -> None:
    """An environment can be deleted under a running node."""
    with pytest.raises(ColdStartFailed, match="/nonexistent/python"):
        await backend.start(RuntimeProfile(name="gone"), replace(ENVIRONMENT, python="/nonexistent/python"))


async def test_a_warm_up_runs_before_the_spare_is_there(backend: Backend) -> None:
    """That is the point of a spare: the first operation has been paid for."""
    sandbox = await backend.start(RuntimeProfile(name="warm", preload=("fractions",), warmup="fractions.warm = 7"), ENVIRONMENT)
    worker = await sandbox.fork()
    await worker.load(load_message("import fractions\ndef handle(event):\n    return fractions.warm\n"))

    assert await result_of(worker, invoke_message()) == 7


# ---------------------------------------------------------------- state and output


async def test_a_worker_is_idle_again_only_after_it_was_given_back(make: Make) -> None:
    """The pool hands out idle workers only."""
    worker = await make("def handle(event):\n    return 1\n")
    await worker.invoke(invoke_message())

    assert worker.give_back()
    assert worker.state == "idle"
    assert not worker.give_back()


async def test_a_retired_worker_runs_the_handlers_close_and_is_gone(make: Make, printed: Printed) -> None:
    """Authors flush and disconnect there."""
    worker = await make(
        "class C:\n    def handle(self, event):\n        return 1\n    def close(self):\n        print('closed')\n", handler="handler:C"
    )
    lost = asyncio.Event()
    worker.on_lost = lambda gone: lost.set()

    worker.retire()

    assert not worker.give_back()
    await lost.wait()
    assert printed.of(worker) == ["closed"]


async def test_what_a_handler_prints_and_logs_arrives_line_by_line(make: Make, printed: Printed) -> None:
    """Whoever runs a function must see what it says, while it says it."""
    worker = await make(
        "import sys, os, logging\ndef handle(event, ctx):\n    print('one')\n    print('two', file=sys.stderr)\n"
        "    os.system('echo three')\n    ctx.log.warning('four %s', 4)\n    sys.stdout.write('no newline')\n    return 1\n"
    )
    await worker.invoke(invoke_message())
    gone = asyncio.Event()
    worker.on_lost = lambda lost: gone.set()
    worker.retire()
    await gone.wait()

    said = printed.of(worker)
    assert [line for line in said if line != "three"] == ["one", "no newline"]
    assert "three" in said  # of another process: over its descriptor, so among the others somewhere
    assert printed.of(worker, "stderr") == ["two"]
    assert printed.of(worker, "log") == ["four 4"]


async def test_a_sandbox_sees_nothing_of_the_nodes_environment(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's environment holds tokens, and its package what a handler has no business with."""
    monkeypatch.setenv("FAAS_SECRET_TOKEN", "s3cr3t")
    worker = await (await backend.start(RuntimeProfile(name="environ"), ENVIRONMENT)).fork()
    await worker.load(
        load_message(
            "import importlib.util, os\ndef handle(event):\n"
            "    return ['s3cr3t' in os.environ.values(), [importlib.util.find_spec('faas.' + name) is not None for name in ('worker', 'errors', 'bus')]]\n"
        )
    )

    assert await result_of(worker, invoke_message()) == [False, [True, False, False]]


async def test_workers_of_one_sandbox_draw_different_random_numbers(sandbox: Sandbox) -> None:
    """They are forks of one process: with its seed they would all sample the same."""
    workers = [await sandbox.fork() for _ in range(2)]
    for worker in workers:
        await worker.load(load_message("import random\ndef handle(event):\n    return random.random()\n"))

    assert len({await result_of(worker, invoke_message()) for worker in workers}) == 2
