"""What a function says while it runs, on a real node: items of a stream, events of its own, lines of its log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from node import Node, end, head, running, write_function

FUNCTIONS = {
    "count": "def handle(event: int):\n    for n in range(event):\n        yield {'n': n}\n",
    "breaks": "def handle(event: int):\n    for n in range(event):\n        yield 'x'\n    raise ValueError('broke off')\n",
    "plain": "def handle(event: int):\n    return event\n",
    "again": "import faas\ndef handle(event: int, ctx):\n    yield 'a'\n    if ctx.attempt == 1:\n        raise faas.Retry(0)\n    yield 'b'\n",
    "large": "def handle(event: int):\n    for n in range(event):\n        yield b'x' * 100_000\n",
    "tells": "def handle(event: int, ctx):\n    for n in range(event):\n        ctx.publish('speech.told', {'n': n})\n    return 'told'\n",
    "relays": "def handle(event, ctx):\n    ctx.publish('speech.hop', event)\n",
    "forges": (
        "from faas.worker import wire\ndef handle(event, ctx):\n"
        "    ctx._send(wire.Emit(subject='speech.told', id='another-order', data=b'1', content_type='text/plain'))\n    return 1\n"
    ),
    "hop": "def handle(event, ctx):\n    return ctx.event.extensions\n",
    "talks": (
        "import logging, sys\nlogging.info('loading')\ndef handle(event, ctx):\n    print('one')\n    print('two', file=sys.stderr)\n"
        "    ctx.log.error('three')\n    ctx.progress(0.5, 'half')\n    ctx.meter('tokens', 7)\n    return 1\n"
    ),
}


@pytest.fixture(scope="module")
async def speaking(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root: Path = tmp_path_factory.mktemp("speech")
    for name, code in FUNCTIONS.items():
        write_function(root / "functions", name, code, f'[[trigger]]\nsubject = "speech.{name}"\n[limits]\npayload = "8MiB"\n')
    async with running(root / "functions", root / "state") as node:
        await node.watch()
        yield node


async def streamed(node: Node, function: str, data: bytes, *, durable: str = "") -> tuple[list[Msg], Msg]:
    """Every item up to the one that ends the stream, and the answer, or the outcome of a durable event of this id."""
    inbox = node.client.new_inbox()
    subscription = await node.client.subscribe(inbox)
    if durable:
        answer = await node.event(f"speech.{function}", data, id=durable, headers={"Faas-Chunk-To": inbox})
    else:
        answer = await node.request(function, data, headers={"Faas-Chunk-To": inbox})
    items = [await subscription.next_msg(timeout=5)]
    while "Faas-Eos" not in head(items[-1]):
        items.append(await subscription.next_msg(timeout=5))
    await subscription.unsubscribe()
    return items, answer


@pytest.mark.parametrize("durable", ["", "count-1"], ids=["synchronous", "durable"])
async def test_items_come_in_order_and_the_outcome_holds_them_all(speaking: Node, durable: str) -> None:
    """A reader needs no more than the inbox; who only looks at the outcome misses nothing."""
    items, answer = await streamed(speaking, "count", b"3", durable=durable)

    assert [json.loads(item.data)["n"] for item in items[:-1]] == [0, 1, 2]
    assert [head(item)["Faas-Seq"] for item in items] == ["1", "2", "3", "4"]
    assert {head(item)["Faas-Attempt"] for item in items} == {"1"}
    assert head(items[-1])["Faas-Eos"] == "true"
    assert json.loads(answer.data) == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_stream_that_breaks_off_says_how(speaking: Node) -> None:
    """Half a text must not pass for a whole one."""
    items, answer = await streamed(speaking, "breaks", b"2")

    assert len(items) == 3
    assert head(items[-1])["Faas-Outcome"] == "failed"
    assert head(items[-1])["Faas-Reason"] == "error"
    assert end(answer) == ("failed", "error")


async def test_a_plain_function_streams_one_item(speaking: Node) -> None:
    """Whoever asks for items need not know which kind of handler answers."""
    items, _ = await streamed(speaking, "plain", b"7")

    assert [item.data for item in items] == [b"7", b""]


async def test_a_synchronous_stream_is_not_tried_again_once_an_item_is_out(speaking: Node) -> None:
    """Its reader would get the first items twice; a durable one is told by `Faas-Attempt`."""
    items, answer = await streamed(speaking, "again", b"1")
    durable, outcome = await streamed(speaking, "again", b"1", durable="again-1")

    assert [item.data for item in items] == [b"a", b""]
    assert end(answer) == ("failed", "error")
    assert [(head(item)["Faas-Attempt"], item.data) for item in durable] == [("1", b"a"), ("2", b"a"), ("2", b"b"), ("2", b"")]
    assert outcome.data == b"ab"


async def test_a_stream_faster_than_the_bus_arrives_whole(speaking: Node) -> None:
    """The worker waits; the node holds a megabyte of it, not all."""
    inbox = speaking.client.new_inbox()
    seen = []

    async def on(message: Msg) -> None:
        seen.append(len(message.data))

    await speaking.client.subscribe(inbox, cb=on)
    answer = await speaking.request("large", b"60", headers={"Faas-Chunk-To": inbox})

    assert end(answer) == ("succeeded", "")
    assert head(answer)["Faas-Object"]  # together they are above what one outcome carries
    assert seen[:60] == [100_000] * 60


async def test_events_of_a_handler_are_stored_before_its_outcome(speaking: Node) -> None:
    """Who sees the outcome may rely on them; they are events like any other."""
    told = await speaking.client.subscribe("speech.told")
    outcome = await speaking.event("speech.tells", b"3", id="tells-1")
    events = [await told.next_msg(timeout=1) for _ in range(3)]
    await told.unsubscribe()

    assert outcome.data == b'"told"'
    assert [json.loads(event.data)["n"] for event in events] == [0, 1, 2]
    assert {head(event)["ce-source"] for event in events} == {"/faas/default/tells"}
    assert head(events[0])["ce-type"] == "faas.published"
    assert len({head(event)["ce-id"] for event in events}) == 3


async def test_an_event_under_a_foreign_id_is_not_published(speaking: Node) -> None:
    """The bus drops what repeats an id: a worker that writes frames of its own could make another's event vanish."""
    answer = await speaking.request("forges", b"1")

    assert end(answer) == ("failed", "error")
    assert "id is that of another invocation" in json.loads(answer.data)["detail"]


async def test_the_end_of_a_stream_that_never_began_is_of_no_attempt(speaking: Node) -> None:
    """It says what its outcome says: zero, where no worker got the event."""
    inbox = speaking.client.new_inbox()
    items = await speaking.client.subscribe(inbox)
    answer = await speaking.request("plain", b"1", headers={"Faas-Chunk-To": inbox, "Faas-Deadline": "2020-01-01T00:00:00Z"})
    last = await items.next_msg(timeout=5)
    await items.unsubscribe()

    assert end(answer) == ("expired", "deadline")
    assert [head(last)[name] for name in ("Faas-Eos", "Faas-Attempt", "Faas-Seq", "Faas-Outcome")] == ["true", "0", "1", "expired"]


async def test_an_event_of_a_handler_sets_off_the_next_function(speaking: Node) -> None:
    """That is what events are for; the chain is counted, so that a loop ends."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await speaking.client.jetstream().publish("speech.relays", b"1", headers={"Nats-Msg-Id": "relay", "traceparent": trace})
    await speaking.outcome("relay")
    async with speaking.arrived:
        await speaking.arrived.wait_for(lambda: any(head(m[0])["Faas-Function"] == "hop" for m in speaking.outcomes.values()))
    (hop,) = [messages[0] for messages in speaking.outcomes.values() if head(messages[0])["Faas-Function"] == "hop"]

    caused = json.loads(hop.data)["traceparent"]
    assert caused != trace  # a child in the same trace
    assert caused.split("-")[1] == trace.split("-")[1]
    assert end(hop) == ("succeeded", "")


async def lines_of(node: Node, function: str, invocation: str, count: int) -> list[dict[str, Any]]:
    """The lines that the log stream has of an invocation, once they are so many."""
    while True:
        stored = await node.stored("FAAS_LOGS", f"faas.log.default.{function}.{invocation}")
        lines = [json.loads(line) for message in stored for line in message.data.splitlines()]
        if len(lines) >= count:
            return lines


async def test_what_a_function_prints_and_logs_is_kept_by_invocation(speaking: Node) -> None:
    """Hours later somebody asks what this one said: with time and level, and nobody else's."""
    first = await speaking.event("speech.talks", b"1", id="talks-1")
    second = await speaking.event("speech.talks", b"1", id="talks-2")
    lines = await lines_of(speaking, "talks", head(first)["Faas-Invocation"], 5)
    later = await lines_of(speaking, "talks", head(second)["Faas-Invocation"], 4)

    assert [(line["stream"], line["level"], line["message"]) for line in lines] == [
        ("log", "info", "loading"),
        ("stdout", "info", "one"),
        ("stderr", "info", "two"),
        ("log", "error", "three"),
        ("progress", "info", "half"),
    ]
    assert lines[-1]["fraction"] == 0.5
    assert all(line["time"].endswith("Z") and line["attempt"] == 1 for line in lines)
    assert {line["invocation"] for line in lines} == {head(first)["Faas-Invocation"]}
    assert [line["message"] for line in later] == ["one", "two", "three", "half"]


async def test_environment_and_mounts_reach_the_handler(tmp_path: Path) -> None:
    """A model lies beside the code, once for all workers; a node's own folders where `[node] mounts` allows them."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "w.txt").write_text("shared")
    folder = tmp_path / "functions" / "reads"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "m.txt").write_text("own")
    (folder / "handler.py").write_text(
        "import os\nSIZE = os.environ['SIZE']\ndef handle(event, ctx):\n"
        "    return [SIZE, (ctx.mounts['own'] / 'm.txt').read_text(), (ctx.mounts['all'] / 'w.txt').read_text()]\n"
    )
    (folder / "function.toml").write_text(
        f'env = {{ SIZE = "small" }}\n[[mount]]\nsource = "assets"\ntarget = "own"\n[[mount]]\nsource = "{weights}"\ntarget = "all"\n'
    )
    (tmp_path / "faas.toml").write_text(f'[node]\nmounts = ["{tmp_path}"]\n')
    async with running(tmp_path / "functions", tmp_path / "state", "--config", str(tmp_path / "faas.toml")) as node:
        answer = await node.request("reads", b"1")
        (folder / "assets" / "m.txt").unlink()
        again = await node.request("reads", b"1")

    assert json.loads(answer.data) == ["small", "own", "shared"]
    assert json.loads(again.data) == ["small", "own", "shared"]


async def test_meters_are_in_the_usage_record(speaking: Node) -> None:
    """A tenant may be billed by tokens."""
    outcome = await speaking.event("speech.talks", b"1", id="talks-3")
    (record,) = json.loads(head(outcome)["Faas-Usage"])

    assert record["meters"] == {"tokens": 7}
