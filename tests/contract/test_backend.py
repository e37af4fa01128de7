"""What every backend does with a well-behaved function: spares, loads, invocations, results, refusals, output."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, PROFILE, Make, Printed, invoke_message, load_message
from msgspec.structs import replace

from faas.errors import ColdStartFailed
from faas.model import RuntimeProfile
from faas.pool.backend import Backend, Sandbox
from faas.pool.process import ProcessBackend
from faas.pool.worker import Worker
from faas.worker import wire


async def result_of(worker: Worker, message: wire.Invoke) -> object:
    answer = await worker.invoke(message)
    assert isinstance(answer, wire.Result), answer
    return json.loads(answer.body)


async def failure_of(worker: Worker, message: wire.Invoke) -> wire.Failed:
    answer = await worker.invoke(message)
    assert isinstance(answer, wire.Failed), answer
    return answer


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


async def test_a_large_body_goes_both_ways_whole(make: Make, tmp_path: Path) -> None:
    """Above 64 KiB bodies take another way than small ones, and must leave no file behind."""
    worker = await make("def handle(event: bytes):\n    return event[::-1]\n")
    body = os.urandom(10 * 2**20)

    answer = await worker.invoke(invoke_message(body, content_type="application/octet-stream"))

    assert isinstance(answer, wire.Result)
    assert answer.body == body[::-1]
    assert list(tmp_path.rglob("spill-*")) == []


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
    assert not Path(f"/proc/{pid}/exe").exists()  # a dead process may still be listed, but runs nothing


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
        await backend.start(PROFILE, replace(ENVIRONMENT, python="/nonexistent/python"))


async def test_a_warm_up_runs_before_the_spare_is_there(backend: Backend) -> None:
    """That is the point of a spare: the first operation has been paid for."""
    sandbox = await backend.start(RuntimeProfile(name="warm", preload=("fractions",), warmup="fractions.warm = 7"), ENVIRONMENT)
    worker = await sandbox.fork()
    await worker.load(load_message("import fractions\ndef handle(event):\n    return fractions.warm\n"))

    assert await result_of(worker, invoke_message()) == 7


# ---------------------------------------------------------------- payloads and results

TYPED = """
import dataclasses, msgspec, typing, faas
class In(msgspec.Struct):
    n: int
@dataclasses.dataclass
class Data:
    n: int
class Typed(typing.TypedDict):
    n: int
"""


@pytest.mark.parametrize(
    ("annotation", "content_type", "data", "expected"),
    [
        ("In", "application/json", b'{"n": 1}', "In(n=1)"),
        ("In", "text/plain", b'{"n": 1}', "In(n=1)"),
        ("Data", "application/json", b'{"n": 1}', "Data(n=1)"),
        ("Typed", "application/json", b'{"n": 1}', "{'n': 1}"),
        ("dict", "", b'{"a": [1]}', "{'a': [1]}"),
        ("dict[str, int]", "", b'{"a": 1}', "{'a': 1}"),
        ("list", "application/json", b"[1, 2]", "[1, 2]"),
        ("str", "application/json", b'"hi"', "'hi'"),
        ("str", "text/plain", "é".encode(), "'é'"),
        ("str", "", b'"hi"', "'\"hi\"'"),
        ("bytes", "application/json", b'{"n": 1}', "b'{\"n\": 1}'"),
        ("", "application/json", b'{"n": 1}', "{'n': 1}"),
        ("", "application/vnd.a+json; charset=utf-8", b'{"n": 1}', "{'n': 1}"),
        ("", "application/octet-stream", b"\xff", "b'\\xff'"),
        ("", "text/plain", b"1", "b'1'"),
    ],
)
async def test_the_annotation_says_how_a_payload_is_decoded(
    make: Make, *, annotation: str, content_type: str, data: bytes, expected: str
) -> None:
    """The annotation of the first parameter is the contract of a function."""
    worker = await make(f"{TYPED}\ndef handle(event{': ' + annotation if annotation else ''}):\n    return repr(event)\n")

    assert await result_of(worker, invoke_message(data, content_type=content_type)) == expected


@pytest.mark.parametrize(
    ("annotation", "content_type", "data", "named"),
    [
        ("In", "application/json", b'{"n": "x"}', "$.n"),
        ("In", "application/json", b"{}", "n"),
        ("Data", "application/json", b'{"n": 1.5}', "$.n"),
        ("list[int]", "application/json", b'[1, "2"]', "$[1]"),
        ("dict", "application/json", b"{", ""),
        ("str", "text/plain", b"\xff", "UTF-8"),
        ("str", "application/json", b"1", "str"),
        ("", "application/json", b"{", ""),
        ("dict", "application/json", b"[" * 100_000, ""),
    ],
)
async def test_a_payload_that_does_not_fit_is_refused_before_the_handler_runs(
    make: Make, *, annotation: str, content_type: str, data: bytes, named: str
) -> None:
    """The sender sees which field; the handler never sees half-valid input."""
    worker = await make(f"{TYPED}\ndef handle(event{': ' + annotation if annotation else ''}):\n    raise SystemError('called')\n")

    failed = await failure_of(worker, invoke_message(data, content_type=content_type))

    assert failed.reason == "payload_invalid"
    assert named in failed.detail


async def test_a_handler_that_asks_for_an_event_gets_its_attributes(make: Make) -> None:
    """faas.Event is how a handler sees what a payload alone does not say."""
    worker = await make(
        "import faas\ndef handle(event: faas.Event):\n"
        "    return [event.id, event.source, event.type, event.subject, event.time.isoformat(), event.extensions, event.data]\n"
    )
    message = wire.Invoke(
        invocation_id="i", attempt=1, remaining_s=1, id="e", source="/s", event_type="t", subject="u", time="2026-01-02T03:04:05Z",
        datacontenttype="application/json", extensions={"x": "y"}, data=b"[1]",
    )  # fmt: skip

    assert await result_of(worker, message) == ["e", "/s", "t", "u", "2026-01-02T03:04:05+00:00", {"x": "y"}, [1]]


async def test_the_context_says_what_the_invocation_is(make: Make) -> None:
    """Every field that the contract promises and that exists by now."""
    worker = await make(
        "def handle(event, ctx):\n"
        "    return [ctx.invocation_id, ctx.attempt, ctx.function, ctx.tenant, dict(ctx.tags), ctx.device, ctx.gpu, ctx.event.id,\n"
        "            ctx.deadline.tzinfo is not None, 0 < ctx.remaining_s() <= 30, type(ctx.event).__name__]\n"
    )

    said = await result_of(worker, invoke_message(attempt=3))

    assert said == ["i" * 26, 3, "f", "default", {"a": "b"}, "cpu", None, "e-1", True, True, "Event"]


@pytest.mark.parametrize(
    ("expression", "body", "content_type"),
    [
        ("{'a': 1}", b'{"a":1}', "application/json"),
        ("'text'", b'"text"', "application/json"),
        ("None", b"null", "application/json"),
        ("b'raw'", b"raw", "application/octet-stream"),
        ("In(3)", b'{"n":3}', "application/json"),
        ("faas.Result('<p>', content_type='text/html')", b"<p>", "text/html"),
        ("faas.Result(b'x')", b"x", "application/octet-stream"),
    ],
)
async def test_a_result_is_encoded_by_what_it_is(make: Make, *, expression: str, body: bytes, content_type: str) -> None:
    """The body of an outcome is the handler's result itself."""
    worker = await make(f"{TYPED}\ndef handle(event):\n    return {expression}\n")

    answer = await worker.invoke(invoke_message())

    assert isinstance(answer, wire.Result)
    assert (answer.body, answer.content_type) == (body, content_type)


@pytest.mark.parametrize("expression", ["object()", "{1: {2: object()}}", "faas.Result(3)", "(lambda a: a.append(a) or a)([])"])
async def test_a_result_that_cannot_be_encoded_is_said_to_be_so(make: Make, expression: str) -> None:
    """It is not the handler that failed; the message must not look like a traceback of ours."""
    worker = await make(f"import faas\ndef handle(event):\n    return {expression}\n")

    assert (await failure_of(worker, invoke_message())).reason == "result_invalid"


async def test_a_result_above_the_limit_is_refused_in_the_worker(make: Make) -> None:
    """It never crosses the socket, so it costs the node nothing."""
    worker = await make("def handle(event):\n    return b'x' * event\n", limit_bytes=1000)

    assert (await worker.invoke(invoke_message(b"1000"))).__class__ is wire.Result
    failed = await failure_of(worker, invoke_message(b"1001"))
    assert failed.reason == "result_too_large"
    assert "1000" in failed.detail


# ---------------------------------------------------------------- ends that are not results


async def test_an_exception_ends_the_attempt_with_the_authors_frames_alone(make: Make) -> None:
    """The traceback is for the author; our own frames would only hide the line that matters."""
    worker = await make("def inner():\n    raise ValueError('negative')\ndef handle(event):\n    inner()\n")

    failed = await failure_of(worker, invoke_message())

    assert (failed.reason, failed.detail) == ("error", "ValueError: negative")
    assert "in inner" in failed.traceback
    assert "serve.py" not in failed.traceback
    assert await failure_of(worker, invoke_message())  # and the worker lives on


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("import sys; sys.exit('bye')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise MemoryError", "MemoryError"),
        ("handle(event)", "RecursionError"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", "Odd"),
        ("raise ValueError('x' * 10_000_000)", "ValueError"),
    ],
)
async def test_whatever_a_handler_raises_is_a_failure_of_its_attempt(make: Make, statement: str, name: str) -> None:
    """None of these may end the worker's loop, or be mistaken for a crash."""
    worker = await make(f"def handle(event):\n    {statement}\n")

    failed = await failure_of(worker, invoke_message())

    assert failed.reason == "error"
    assert name in failed.detail
    assert len(failed.traceback) <= 8 * 1024 + 100


async def test_reject_and_retry_are_what_they_say(make: Make) -> None:
    """The author's words for an event that can never succeed, and for one that may later."""
    worker = await make("import faas\ndef handle(event):\n    raise faas.Reject('no picture') if event else faas.Retry(1.5)\n")

    rejected, retried = await failure_of(worker, invoke_message(b"1")), await failure_of(worker, invoke_message(b"0"))

    assert (rejected.reason, rejected.detail) == ("rejected_by_handler", "no picture")
    assert (retried.reason, retried.retry_after_s) == ("error", 1.5)


@pytest.mark.parametrize(
    ("code", "handler", "named"),
    [
        ("import nosuchmodule\n", "handler:handle", "nosuchmodule"),
        ("def handle(event:\n", "handler:handle", "SyntaxError"),
        ("x = 1\n", "handler:handle", "handle"),
        ("def handle(event):\n    yield 1\n", "handler:handle", "not supported yet"),
        ("async def handle(event):\n    return 1\n", "handler:handle", "not supported yet"),
        ("def handle():\n    return 1\n", "handler:handle", "event"),
        ("handle = 3\n", "handler:handle", "handle"),
        (
            "class C:\n    def load(self, ctx):\n        raise OSError('no weights')\n    def handle(self, event):\n        pass\n",
            "handler:C",
            "no weights",
        ),
        ("class C:\n    pass\n", "handler:C", "handle"),
        ("import sys\nsys.exit(4)\n", "handler:handle", "SystemExit"),
    ],
)
async def test_a_function_that_cannot_be_loaded_says_why(spare: Worker, *, code: str, handler: str, named: str) -> None:
    """A load error goes to the author word for word; the worker that had it is not used again."""
    spare.lease()

    failed = await spare.load(load_message(code, handler=handler))

    assert isinstance(failed, wire.LoadFailed)
    assert named in failed.detail
    assert not spare.give_back()


@pytest.mark.parametrize("path", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "", "a//b.py"])
async def test_source_files_stay_in_their_folder(spare: Worker, path: str) -> None:
    """The list of files comes from a bundle that anybody may have made."""
    message = wire.Load(
        function="f", tenant="t", version="v", handler="evil:handle", files=(wire.File(path, b"def handle(event): pass\n"),),
        result_limit_bytes=1000,
    )  # fmt: skip

    assert isinstance(await spare.load(message), wire.LoadFailed)


async def test_a_load_reports_the_schemas_of_input_and_output(spare: Worker) -> None:
    """They are kept with the version, for callers and for documentation."""
    loaded = await spare.load(load_message(f"{TYPED}\ndef handle(event: In) -> list[int]:\n    return []\n"))

    assert isinstance(loaded, wire.Loaded)
    assert "integer" in loaded.input_schema
    assert json.loads(loaded.output_schema)["type"] == "array"


async def test_a_function_of_several_files_imports_and_reads_its_own(spare: Worker) -> None:
    """A function's folder is its package: helpers beside the handler, data beside both."""
    files = (
        wire.File("handler.py", b"import pathlib\nfrom lib.more import N\ndef handle(event):\n"
                                b"    return [N, pathlib.Path(__file__).with_name('data.txt').read_text()]\n"),
        wire.File("lib/more.py", b"N = 5\n"),
        wire.File("data.txt", b"here"),
    )  # fmt: skip
    loaded = await spare.load(
        wire.Load(function="f", tenant="t", version="v", handler="handler:handle", files=files, result_limit_bytes=1000)
    )

    assert isinstance(loaded, wire.Loaded), loaded
    assert await result_of(spare, invoke_message()) == [5, "here"]


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

    assert printed.of(worker) == ["one", "three", "no newline"]
    errors = printed.of(worker, "stderr")
    assert errors[0] == "two"
    assert "four 4" in errors[1]


async def test_a_sandbox_sees_nothing_of_the_nodes_environment(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's environment holds tokens, and its package what a handler has no business with."""
    monkeypatch.setenv("FAAS_SECRET_TOKEN", "s3cr3t")
    worker = await (await backend.start(PROFILE, ENVIRONMENT)).fork()
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
