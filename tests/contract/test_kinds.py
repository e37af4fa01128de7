"""Handlers of every kind: async, generators of both kinds, and what a context says to the node while a handler runs."""

from __future__ import annotations

import json

import msgspec
import pytest
from conftest import Make, Printed, failure_of, invoke_message, result_of

from faas.errors import ProtocolError
from faas.pool.worker import Worker
from faas.worker import wire

Said = wire.Chunk | wire.Emit | wire.Metered


async def heard(worker: Worker, message: wire.Invoke) -> tuple[wire.Result | wire.Failed, list[Said]]:
    """The answer, and what was said before it."""
    said: list[Said] = []
    return await worker.invoke(message, on_said=said.append), said


def streamed(data: bytes = b"3") -> wire.Invoke:
    return msgspec.structs.replace(invoke_message(data), stream=True)


async def test_an_async_handler_is_awaited(make: Make) -> None:
    """It may await whatever it likes; the node sees one result."""
    worker = await make("import asyncio\nasync def handle(event):\n    await asyncio.sleep(0)\n    return event + 1\n")

    assert await result_of(worker, invoke_message(b"1")) == 2


async def test_the_event_loop_lives_as_long_as_the_worker(make: Make) -> None:
    """A connection that `load` opened on it must still work in the tenth attempt."""
    worker = await make(
        "import asyncio\nclass F:\n    async def load(self, ctx):\n        self.loop = asyncio.get_running_loop()\n"
        "    async def handle(self, event):\n        return asyncio.get_running_loop() is self.loop\n",
        handler="handler:F",
    )

    assert await result_of(worker, invoke_message()) is True
    assert await result_of(worker, invoke_message()) is True


async def test_an_async_close_is_awaited(make: Make, printed: Printed) -> None:
    """Connections of an async handler can only be closed on its loop."""
    worker = await make(
        "import asyncio\nclass F:\n    async def handle(self, event):\n        return 1\n"
        "    async def close(self):\n        await asyncio.sleep(0)\n        print('closed', flush=True)\n",
        handler="handler:F",
    )
    await worker.invoke(invoke_message())
    worker.retire()
    await printed.until(worker, 1)

    assert printed.of(worker) == ["closed"]


async def test_what_an_async_handler_raises_is_its_failure(make: Make) -> None:
    """As in a plain one, and the worker serves on."""
    worker = await make(
        "import faas\nasync def handle(event):\n    if event == 1:\n        raise ValueError('no')\n    if event == 2:\n        raise faas.Reject('bad')\n    return event\n"
    )

    assert (await failure_of(worker, invoke_message(b"1"))).detail == "ValueError: no"
    assert (await failure_of(worker, invoke_message(b"2"))).reason == "rejected_by_handler"
    assert await result_of(worker, invoke_message(b"3")) == 3


PLAIN = "def handle(event):\n    for n in range(event):\n        yield {item}\n"
ASYNC = "async def handle(event):\n    for n in range(event):\n        yield {item}\n"


@pytest.mark.parametrize("code", [PLAIN, ASYNC], ids=["generator", "async-generator"])
@pytest.mark.parametrize(
    ("item", "chunks", "body", "content_type"),
    [
        ("{'n': n}", [b'{"n":0}', b'{"n":1}', b'{"n":2}'], b'[{"n":0},{"n":1},{"n":2}]', "application/json"),
        ("'t%d\\u00e9' % n", ["t0é".encode(), "t1é".encode(), "t2é".encode()], "t0ét1ét2é".encode(), "text/plain"),
        ("bytes([n])", [b"\0", b"\1", b"\2"], b"\0\1\2", "application/octet-stream"),
        ("n if n else 'a'", [b"a", b"1", b"2"], b'["a",1,2]', "application/json"),
        ("faas.Result(b'p%d' % n, 'image/png')", [b"p0", b"p1", b"p2"], b"p0p1p2", "image/png"),
    ],
    ids=["json", "text", "bytes", "mixed", "results"],
)
async def test_a_generator_streams_its_items_and_its_outcome_holds_them_all(
    make: Make, *, code: str, item: str, chunks: list[bytes], body: bytes, content_type: str
) -> None:
    """Who waits for the items gets each as it comes; who does not gets them together."""
    worker = await make("import faas\n" + code.replace("{item}", item))
    answer, said = await heard(worker, streamed())
    quiet, silence = await heard(worker, invoke_message(b"3"))

    assert isinstance(answer, wire.Result)
    assert (answer.body, answer.content_type) == (body, content_type)
    assert [chunk.data for chunk in said if isinstance(chunk, wire.Chunk)] == chunks
    assert isinstance(quiet, wire.Result)
    assert quiet.body == body
    assert silence == []


async def test_an_empty_generator_is_an_empty_array(make: Make) -> None:
    """Nothing says what its items would have been."""
    worker = await make("def handle(event):\n    yield from ()\n")

    assert await result_of(worker, invoke_message()) == []


async def test_a_plain_result_is_a_stream_of_one(make: Make) -> None:
    """Whoever asks for items need not know what kind of handler answers."""
    worker = await make("def handle(event):\n    return [event]\n")
    answer, said = await heard(worker, streamed(b"3"))

    assert isinstance(answer, wire.Result)
    assert said == [wire.Chunk(data=b"[3]", content_type="application/json")]


async def test_a_generator_that_raises_fails_after_its_items(make: Make) -> None:
    """What was streamed was streamed; the end says that it is not whole."""
    worker = await make("def handle(event):\n    yield 'a'\n    raise ValueError('broke off')\n")
    answer, said = await heard(worker, streamed())

    assert isinstance(answer, wire.Failed)
    assert (answer.reason, answer.detail) == ("error", "ValueError: broke off")
    assert len(said) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def handle(event):\n    yield object()\n", "result_invalid"),
        ("async def handle(event):\n    yield '\\ud800'\n", "result_invalid"),
        ("def handle(event):\n    while True:\n        yield b'x' * 1000\n", "result_too_large"),
    ],
)
async def test_items_that_cannot_be_sent_end_the_attempt(make: Make, code: str, reason: str) -> None:
    """A generator without end must not fill the worker's memory; one bad item spoils the whole."""
    worker = await make(code, limit_bytes=100_000)

    assert (await failure_of(worker, invoke_message())).reason == reason


async def test_a_generator_runs_its_clean_up(make: Make) -> None:
    """It may hold a file or a connection when an item turns out to be too large."""
    worker = await make(
        "left = []\ndef handle(event):\n    if event == 2:\n        return left\n    return items()\n"
        "def items():\n    try:\n        while True:\n            yield b'x' * 50_000\n    finally:\n        left.append(1)\n",
        limit_bytes=100_000,
    )
    await failure_of(worker, invoke_message(b"1"))

    assert await result_of(worker, invoke_message(b"2")) == [1]


# ---------------------------------------------------------------- the context


async def test_meters_add_up_and_come_with_the_answer(make: Make) -> None:
    """They are what a tenant is billed by beside time."""
    worker = await make(
        "def handle(event, ctx):\n    for n in range(event):\n        ctx.meter('tokens', 2)\n    ctx.meter('calls')\n    return 1\n"
    )
    answer, said = await heard(worker, invoke_message(b"50"))

    assert isinstance(answer, wire.Result)
    assert answer.meters == {"tokens": 100, "calls": 1}
    assert said[0] == wire.Metered(meters={"tokens": 2})
    assert len(said) < 50


async def test_meters_of_an_attempt_that_fails_come_too(make: Make) -> None:
    """What was used was used."""
    worker = await make("def handle(event, ctx):\n    ctx.meter('tokens', 3)\n    raise ValueError\n")

    assert (await failure_of(worker, invoke_message())).meters == {"tokens": 3}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("ctx.meter('a', -1)", "zero or more"),
        ("ctx.meter('a', 1.5)", "zero or more"),
        ("ctx.meter('no name')", "a name of letters"),
        ("[ctx.meter(f'm{n}') for n in range(21)]", "20 meters at most"),
        ("ctx.progress(1.5)", "a fraction from 0 to 1"),
        ("ctx.progress(float('nan'))", "a fraction from 0 to 1"),
        ("ctx.publish('faas.outcome.a.b.c', 1)", "belongs to the runtime"),
        ("ctx.publish('$SYS.a', 1)", "belongs to the runtime"),
        ("ctx.publish('a b', 1)", "is no subject"),
        ("ctx.publish('a.>', 1)", "without wildcards"),
        ("ctx.publish('', 1)", "is no subject"),
        ("ctx.publish('a', b'x' * 2**20)", "at most"),
        ("ctx.publish('a', 1, content_type='a\\r\\nb')", "no content type"),
        ("[ctx.publish('a') for n in range(1001)]", "may publish 1000 events"),
        ("ctx.checkpoint.save({})", "not supported yet"),
        ("ctx.checkpoint.load()", "not supported yet"),
    ],
)
async def test_a_context_refuses_what_cannot_be(make: Make, call: str, said: str) -> None:
    """At the line that asks for it, where the author sees it."""
    worker = await make(f"def handle(event, ctx):\n    {call}\n")

    assert said in (await failure_of(worker, invoke_message())).detail


async def test_what_a_handler_publishes_has_an_id_that_repeats_with_it(make: Make) -> None:
    """After a crash the next attempt publishes again; the bus must know what it has."""
    worker = await make("def handle(event, ctx):\n    ctx.publish('a.b', event)\n    ctx.publish('a.b', b'raw')\n    return 1\n")
    _, first = await heard(worker, invoke_message(b"1"))
    _, again = await heard(worker, invoke_message(b"1", attempt=2))
    _, other = await heard(worker, invoke_message(b"2"))

    assert first == again
    assert [said.data for said in first if isinstance(said, wire.Emit)] == [b"1", b"raw"]
    assert isinstance(first[0], wire.Emit)
    assert isinstance(other[0], wire.Emit)
    assert first[0].id != other[0].id
    assert first[0].content_type == "application/json"


async def test_progress_comes_as_lines_of_the_log_a_few_a_second(make: Make, printed: Printed) -> None:
    """A training loop reports every step; the last word always comes."""
    worker = await make("def handle(event, ctx):\n    for n in range(1001):\n        ctx.progress(n / 1000, f'step {n}')\n    return 1\n")
    await worker.invoke(invoke_message())
    lines = printed.of(worker, "progress")

    assert lines[0] == "step 0"
    assert lines[-1] == "step 1000"
    assert len(lines) < 500


async def test_a_loop_that_is_done_and_says_so_for_ever_is_no_flood(make: Make, printed: Printed) -> None:
    """What a context lets through must stay below what the node takes for an attack, whatever the fraction."""
    worker = await make("def handle(event, ctx):\n    for n in range(20_000):\n        ctx.progress(1)\n    return 1\n")

    assert await result_of(worker, invoke_message()) == 1
    assert 1 <= len(printed.of(worker, "progress")) < 200


async def test_load_may_report_and_nothing_else(make: Make, printed: Printed) -> None:
    """There is no event yet that something published or counted would belong to; to drop it in silence would be worse."""
    worker = await make(
        "class F:\n    def load(self, ctx):\n        ctx.progress(0.5, 'weights')\n        self.said = []\n        for act in (lambda: ctx.publish('a.b', 1), lambda: ctx.meter('n')):\n"
        "            try:\n                act()\n            except RuntimeError as error:\n                self.said.append(str(error))\n"
        "    def handle(self, event):\n        return self.said\n",
        handler="handler:F",
    )

    assert await result_of(worker, invoke_message()) == ["in load there is no event yet: publish and count in handle"] * 2
    assert printed.of(worker, "progress") == ["weights"]


async def test_a_thread_cannot_speak_in_the_name_of_the_next_attempt(make: Make) -> None:
    """Its event would be published as another invocation's, and its answer taken for a broken protocol."""
    worker = await make(
        "import threading\ngo, said = threading.Event(), []\ndef late(ctx):\n    go.wait()\n    for act in (lambda: ctx.publish('a.b', 1), lambda: ctx.progress(1)):\n"
        "        try:\n            act()\n        except RuntimeError as error:\n            said.append(str(error))\n"
        "def handle(event, ctx):\n    global thread\n    if event == 1:\n        thread = threading.Thread(target=late, args=(ctx,))\n        thread.start()\n        return 1\n"
        "    go.set()\n    thread.join()\n    return said\n"
    )
    await result_of(worker, invoke_message(b"1"))
    answer, said = await heard(worker, invoke_message(b"2"))

    assert isinstance(answer, wire.Result)
    assert [("attempt has ended" in text) for text in json.loads(answer.body)] == [True, True]
    assert said == []


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal\ndef handle(event, ctx):\n    before = ctx.cancelled\n    os.kill(os.getpid(), signal.SIGTERM)\n    return [before, ctx.cancelled]\n",
        "import asyncio, os, signal\nasync def handle(event, ctx):\n    os.kill(os.getpid(), signal.SIGTERM)\n    try:\n        await asyncio.sleep(60)\n"
        "    except asyncio.CancelledError:\n        return [False, ctx.cancelled]\n",
    ],
    ids=["blocking", "async"],
)
async def test_a_signal_asks_a_handler_to_stop(make: Make, code: str) -> None:
    """A blocking one looks at its context, an async one is cancelled where it waits; the next attempt starts afresh."""
    worker = await make(code)

    assert await result_of(worker, invoke_message()) == [False, True]
    assert await result_of(worker, invoke_message()) == [False, True]


async def test_environment_and_mounts_are_there_from_the_first_line(sandbox: object, make: Make) -> None:
    """A module reads its configuration when it is imported."""
    del make
    worker = await sandbox.fork()  # type: ignore[attr-defined]
    code = "import os\nSIZE = os.environ['MODEL_SIZE']\ndef handle(event, ctx):\n    return [SIZE, str(ctx.mounts['model']), ctx.mounts['model'].name]\n"
    load = wire.Load(
        function="f", tenant="t", version="v", handler="handler:handle", files=(wire.File("handler.py", code.encode()),),
        result_limit_bytes=1000, env={"MODEL_SIZE": "small"}, mounts={"model": "/data/weights"},
    )  # fmt: skip
    worker.lease()
    assert isinstance(await worker.load(load), wire.Loaded)

    assert await result_of(worker, invoke_message()) == ["small", "/data/weights", "weights"]


# ---------------------------------------------------------------- lines


async def test_lines_of_logging_have_their_level_and_logger(make: Make, printed: Printed) -> None:
    """An error among a thousand lines must be findable."""
    worker = await make(
        "import logging\nlog = logging.getLogger('app')\ndef handle(event, ctx):\n    log.error('no %s', 'picture')\n    ctx.log.info('fine')\n"
        "    try:\n        1 / 0\n    except ZeroDivisionError:\n        log.exception('oh')\n    log.debug('not asked for')\n    return 1\n"
    )
    await worker.invoke(invoke_message())
    lines = [line for whose, line in printed.whole if whose is worker]

    assert [(line.level, line.logger, line.text) for line in lines[:2]] == [("error", "app", "no picture"), ("info", "faas", "fine")]
    assert "ZeroDivisionError" in "\n".join(line.text for line in lines)
    assert "not asked for" not in "\n".join(line.text for line in lines)


async def test_structlog_comes_with_its_levels(make: Make, printed: Printed) -> None:
    """It prints by default, and a level in the text is none that one can filter by."""
    worker = await make("import structlog\ndef handle(event):\n    structlog.get_logger().warning('late', by=3)\n    return 1\n")
    await worker.invoke(invoke_message())
    (line,) = [line for whose, line in printed.whole if whose is worker]

    assert (line.level, line.stream) == ("warning", "log")
    assert "late" in line.text
    assert "by=3" in line.text


async def test_a_forked_child_that_prints_does_not_speak_for_its_worker(make: Make, printed: Printed) -> None:
    """Its words on the worker's socket would fall into the middle of an answer; they go over the descriptor."""
    worker = await make(
        "import os\ndef handle(event, ctx):\n    for n in range(20):\n        pid = os.fork()\n        if pid == 0:\n            print('child', flush=True)\n"
        "            try:\n                ctx.publish('a.b', 1)\n            except RuntimeError:\n                print('refused', flush=True)\n            os._exit(0)\n"
        "        os.waitpid(pid, 0)\n    return 'x' * 200_000\n"
    )
    answer, said = await heard(worker, invoke_message())
    await printed.until(worker, 40)

    assert isinstance(answer, wire.Result)
    assert len(json.loads(answer.body)) == 200_000
    assert said == []
    assert sorted(printed.of(worker)) == ["child"] * 20 + ["refused"] * 20


async def test_threads_and_signal_handlers_may_print_while_an_answer_is_sent(make: Make) -> None:
    """Neither may cut a message in two, nor wait for itself."""
    worker = await make(
        "import signal, sys, threading\ndef shout(number, frame):\n    print('tick')\nsignal.signal(signal.SIGALRM, shout)\n"
        "def talk():\n    for n in range(300):\n        print('thread', n)\n"
        "def handle(event):\n    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)\n    threads = [threading.Thread(target=talk) for _ in range(4)]\n"
        "    for thread in threads:\n        thread.start()\n    for n in range(40):\n        yield 'y' * 100_000\n    for thread in threads:\n        thread.join()\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    answer, said = await heard(worker, streamed())

    assert isinstance(answer, wire.Result)
    assert len(said) == 40
    assert answer.size == 4_000_000


@pytest.mark.parametrize(
    "lines", ["print('a')\n        print('b', file=sys.stderr)", "logging.getLogger(f'l{n}').error('')"], ids=["streams", "loggers"]
)
async def test_many_short_lines_of_many_kinds_are_cut_and_end_nobody(make: Make, printed: Printed, lines: str) -> None:
    """Each is a message of its own; only who writes frames by himself may pass the bound on those."""
    worker = await make(f"import logging, sys\ndef handle(event):\n    for n in range(10_000):\n        {lines}\n    return 1\n")

    assert await result_of(worker, invoke_message()) == 1
    texts = [line.text for whose, line in printed.whole if whose is worker]
    assert len(texts) == wire.LOG_BYTES // wire.LOG_LINE_BYTES + 1
    assert "rest is dropped" in texts[-1]


async def test_a_worker_that_floods_the_log_with_messages_of_its_own_is_ended(make: Make) -> None:
    """Its own code sends a few hundred; who writes frames by himself must not keep the node busy."""
    worker = await make(
        "import sys\nfrom faas.worker import wire\ndef handle(event):\n    send = sys.stdout._log._send\n"
        "    while True:\n        send(wire.Log(stream='log', text='', at=0))\n"
    )
    with pytest.raises(ProtocolError):
        await worker.invoke(invoke_message())
