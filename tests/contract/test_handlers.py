"""What becomes of payloads, results and exceptions in a worker, and of functions that cannot be loaded."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Make, failure_of, invoke_message, load_message, result_of

from faas.pool.worker import Worker
from faas.worker import loader, wire

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


@pytest.mark.parametrize(
    "expression",
    [
        "object()",
        "{1: {2: object()}}",
        "faas.Result(3)",
        "faas.Result('', content_type='a\\r\\nFaas-Outcome: x')",
        "'\\udc80'",
        "(lambda a: a.append(a) or a)([])",
    ],
)
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
        ("raise ValueError('\\udc80')", "ValueError"),
        ("import faas; raise faas.Reject('\\udc80') if False else faas.Retry(-1)", "ValueError"),
    ],
)
async def test_whatever_a_handler_raises_is_a_failure_of_its_attempt(make: Make, statement: str, name: str) -> None:
    """None of these may end the worker's loop, or be mistaken for a crash."""
    worker = await make(f"def handle(event):\n    {statement}\n")

    failed = await failure_of(worker, invoke_message())

    assert failed.reason == "error"
    assert name in failed.detail
    assert len(failed.traceback) <= 8 * 1024 + 100


async def test_the_cause_of_an_exception_is_told_too(make: Make) -> None:
    """`raise ... from ...` is how a library says what really happened."""
    worker = await make(
        "def inner():\n    raise KeyError('deep')\ndef handle(event):\n    try:\n        inner()\n    except KeyError as error:\n"
        "        raise ValueError('outer') from error\n"
    )

    failed = await failure_of(worker, invoke_message())

    assert "KeyError: 'deep'" in failed.traceback
    assert "serve.py" not in failed.traceback


async def test_what_an_authors_type_raises_while_it_is_decoded_is_an_error(make: Make) -> None:
    """Only msgspec's own verdict, and ValueError and TypeError which it takes for one, blame the sender."""
    worker = await make(
        "import msgspec\nclass In(msgspec.Struct):\n    n: int\n    def __post_init__(self):\n        raise KeyError('mine') if self.n else ValueError('yours')\n"
        "def handle(event: In):\n    return 1\n"
    )

    assert (await failure_of(worker, invoke_message(b'{"n": 1}'))).reason == "error"
    assert (await failure_of(worker, invoke_message(b'{"n": 0}'))).reason == "payload_invalid"


async def test_a_handlers_module_wins_over_one_of_that_name(spare: Worker) -> None:
    """A folder may well have a handler in `random.py` or `select.py`; the template has imported those of the standard library."""
    message = wire.Load(
        function="f", tenant="t", version="v", handler="select:handle", files=(wire.File("select.py", b"def handle(event):\n    return 5\n"),),
        result_limit_bytes=1000,
    )  # fmt: skip

    assert isinstance(await spare.load(message), wire.Loaded)
    assert await result_of(spare, invoke_message()) == 5


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


def test_workers_that_load_at_once_find_the_code_whole(tmp_path: Path) -> None:
    """Each is process 2 of a namespace of its own, so that a folder named by its pid was taken away from below the other."""
    files = tuple(wire.File(f"part{n}.py", b"#" * 1000) for n in range(20))
    with ThreadPoolExecutor(4) as threads:
        for version in range(20):
            message = wire.Load(
                function="f", tenant="t", version=f"v{version}", handler="part0:handle", files=files, result_limit_bytes=1000
            )
            for folder in threads.map(lambda _, message=message: loader._write(message, str(tmp_path)), range(4)):
                assert len(list(Path(folder).iterdir())) == 20
