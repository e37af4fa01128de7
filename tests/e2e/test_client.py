"""The client as programs use it, and the verbs that stand on it, against a real node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from node import FAAS, OWN_BUS, PROJECT, Node, command, running, write_function

import faas
from faas.calling.flows import Item, items_of
from faas.client import Client
from faas.errors import BusUnavailable, ConfigInvalid, InvocationFailed, NoSuchFunction

FUNCTIONS = {
    "count": "def handle(event: int):\n    for n in range(event):\n        yield n\n",
    "spell": "def handle(event: str):\n    for ch in event:\n        yield ch\n",
    "breaks": "def handle(event: int):\n    yield 'a'\n    raise ValueError('broke off')\n",
    "lingers": "import time\ndef handle(event: float):\n    yield 'a'\n    time.sleep(event)\n    yield 'b'\n",
    "square": "def handle(event: int):\n    if event < 0:\n        raise ValueError('negative')\n    return event * event\n",
    "text": "import faas\ndef handle(event: str):\n    return faas.Result(event.upper(), 'text/plain; charset=utf-8')\n",
    "talks": "def handle(event: int, ctx):\n    print('hello', event)\n    ctx.log.warning('\x1b[31mred')\n    ctx.progress(0.5, 'half')\n    return 1\n",
    "waits": "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n",
}


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root: Path = tmp_path_factory.mktemp("client")
    for name, code in FUNCTIONS.items():
        write_function(root / "functions", name, code, f'[[trigger]]\nsubject = "client.{name}"\n')
    async with running(root / "functions", root / "state") as started:
        yield started


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with faas.connect(node.info["nats"]) as connected:
        yield connected


async def test_a_stream_gives_its_items_as_values(client: Client) -> None:
    """JSON items are values, text is text: what the handler yielded."""
    assert [item async for item in client.stream("count", 4)] == [0, 1, 2, 3]
    assert [item async for item in client.stream("spell", "añb")] == ["a", "ñ", "b"]
    assert [item async for item in client.stream("square", 3)] == [9]
    assert [item async for item in client.stream("count", 0)] == []


async def test_a_stream_that_fails_raises_behind_its_last_item(client: Client) -> None:
    """What came stays with the reader; the error has the remote traceback."""
    seen = []
    items = client.stream("breaks", 1)
    seen.append(await anext(items))
    with pytest.raises(InvocationFailed) as failed:
        await anext(items)

    assert seen == ["a"]
    assert (failed.value.outcome, failed.value.code) == ("failed", "error")
    assert "broke off" in failed.value.detail
    assert "ValueError" in failed.value.traceback


async def test_a_stream_of_a_function_that_is_not_there_says_so(client: Client) -> None:
    """At once, not after a timeout."""
    with pytest.raises(NoSuchFunction, match="no function nosuch"):
        await anext(client.stream("nosuch", 1))


async def test_a_reader_that_stops_early_leaves_nothing_behind(client: Client) -> None:
    """Its subscription must go; the next stream is its own."""
    async with aclosing(client.stream("count", 100)) as items:
        async for item in items:
            if item == 2:
                break

    assert [item async for item in client.stream("count", 2)] == [0, 1]


async def test_a_stream_that_is_refused_raises(client: Client) -> None:
    """A payload that does not fit never reaches the handler."""
    with pytest.raises(InvocationFailed, match="payload_invalid"):
        await anext(client.stream("count", "three"))


async def test_a_slow_reader_of_a_stream_is_not_cancelled_in_its_own_work(client: Client) -> None:
    """The time of a call is the node's to keep; what is there already is read, however late."""
    items = items_of(client._connection, "faas.invoke.default.count", b"3", head={"Content-Type": "application/json"}, wait_s=0.2)
    first = await anext(items)
    assert await client.invoke("waits", 0.5) == 0.5

    assert [first, *[item async for item in items]] == [Item(0), Item(1), Item(2)]


async def test_a_stream_whose_connection_is_closed_is_not_taken_for_whole(node: Node) -> None:
    """Half a text must not pass for a whole one."""
    client = await faas.connect(node.info["nats"])
    items = client.stream("lingers", 1)
    assert await anext(items) == "a"
    await client.close()

    with pytest.raises(BusUnavailable, match="closed"):
        await anext(items)


async def test_results_of_a_map_come_in_order(client: Client) -> None:
    """However the calls finish; a hundred of them with ten at once."""
    assert [result async for result in client.map("square", range(100), in_flight=10)] == [n * n for n in range(100)]


async def test_a_map_takes_items_that_arrive_over_time(client: Client) -> None:
    """A source may be a queue or another stream."""

    async def items() -> AsyncIterator[int]:
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    assert [result async for result in client.map("square", items(), in_flight=2)] == [0, 1, 4, 9, 16]


async def test_a_map_is_bounded_in_flight(client: Client) -> None:
    """A million items must not be a million calls: what is read ahead is what is in flight."""
    taken = 0

    def items() -> list[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken  # type: ignore[misc]

    async with aclosing(client.map("square", items(), in_flight=8)) as results:
        assert [await anext(results) for _ in range(3)] == [1, 4, 9]
        assert taken <= 11


async def test_a_map_raises_when_the_turn_of_a_failed_item_has_come(client: Client) -> None:
    """Results before it are delivered; which item it was is known by their count."""
    seen = []
    results = client.map("square", [1, 2, -1, 4, 5])
    seen += [await anext(results), await anext(results)]
    with pytest.raises(InvocationFailed, match="negative"):
        await anext(results)

    assert seen == [1, 4]


async def test_what_the_items_of_a_map_raise_is_raised_as_it_is(client: Client) -> None:
    """Not wrapped in a group of exceptions that nobody expects."""

    def items() -> list[int]:
        yield 1  # type: ignore[misc]
        raise KeyError("end of file")

    with pytest.raises(KeyError, match="end of file"):
        async for _ in client.map("square", items()):
            pass


@pytest.mark.parametrize("in_flight", [0, -1, 5000])
async def test_a_map_refuses_a_bound_that_is_none(client: Client, in_flight: int) -> None:
    """Zero would wait for ever."""
    with pytest.raises(ConfigInvalid, match="in_flight"):
        await anext(client.map("square", [1], in_flight=in_flight))


async def test_text_comes_as_text(client: Client) -> None:
    """A result with a text content type is what a caller can print."""
    assert await client.invoke("text", "abc") == "ABC"


async def test_a_notebook_needs_no_block(node: Node) -> None:
    """A cell ends, the connection stays; `close` ends it."""
    client = await faas.connect(node.info["nats"])

    assert await client.invoke("square", 5) == 25
    await client.close()
    with pytest.raises(BusUnavailable):
        await client.invoke("square", 5)


async def test_many_calls_share_one_client(client: Client) -> None:
    """As a web server would use it."""
    results = await asyncio.gather(*(client.invoke("square", n) for n in range(50)))

    assert results == [n * n for n in range(50)]


async def test_the_logs_of_one_invocation(client: Client) -> None:
    """What somebody asks for when they are shown a failure."""
    ticket = await client.submit("talks", 7)
    await client.outcome(ticket)
    lines = []
    while len(lines) < 3:  # they follow the outcome by a moment
        lines = [line async for line in client.logs("talks", invocation=ticket.invocation)]

    assert [line.message for line in lines] == ["hello 7", "\x1b[31mred", "half"]
    assert [line.level for line in lines] == ["info", "warning", "info"]
    assert lines[2].fraction == 0.5


async def test_logs_can_be_followed(client: Client) -> None:
    """Lines arrive while the function runs again and again."""
    async with aclosing(client.logs("talks", follow=True)) as lines:
        first = asyncio.ensure_future(anext(lines))
        ticket = await client.submit("talks", 8)
        found = await first
        while not (found.invocation == ticket.invocation and found.message == "half"):
            found = await anext(lines)


async def test_an_outcome_is_found_after_the_connection_was_lost(tmp_path: Path) -> None:
    """The server restarts while the function runs; nobody heard the outcome, and it is there."""
    write_function(tmp_path / "functions", "waits", FUNCTIONS["waits"])
    async with running(tmp_path / "functions", tmp_path / "state", *OWN_BUS) as node, faas.connect(node.info["nats"]) as client:
        ticket = await client.submit("waits", 0.7)
        waiting = asyncio.ensure_future(client.outcome(ticket, wait="9s"))
        await asyncio.sleep(0)
        server = await server_of(node)
        server.kill()
        reply = await waiting

    assert reply.result == 0.7


class _Server:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def kill(self) -> None:
        import os
        import signal

        os.kill(self._pid, signal.SIGKILL)


async def server_of(node: Node) -> _Server:
    """The embedded nats-server of a node: the child of its process that is one."""
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if "nats-server" in Path(f"/proc/{pid}/comm").read_text()]
    return _Server(pid)


# ---------------------------------------------------------------- the verbs


async def test_invoke_stream_prints_items_as_they_come(node: Node) -> None:
    """Text flows on one line, values take one each, and `--json` makes each a line of JSON."""
    url = node.info["nats"]

    assert await command("invoke", "spell", '"abc"', "--stream", "--nats", url) == (0, "abc\n", "")
    assert await command("invoke", "count", "3", "--stream", "--nats", url) == (0, "0\n1\n2\n", "")
    assert await command("invoke", "spell", '"ab"', "--stream", "--json", "--nats", url) == (0, '"a"\n"b"\n', "")


async def test_invoke_stream_of_a_failure_prints_what_came_and_says_why(node: Node) -> None:
    """The exit code is 1, the error on standard error alone."""
    code, out, err = await command("invoke", "breaks", "1", "--stream", "--nats", node.info["nats"])

    assert (code, out) == (1, "a\n")
    assert "broke off" in err


async def test_logs_prints_the_lines_of_one_invocation(node: Node, client: Client) -> None:
    """Whatever a function prints, the terminal's cursor stays where it is."""
    ticket = await client.submit("talks", 9)
    await client.outcome(ticket)
    out = ""
    while "half" not in out:
        code, out, err = await command("logs", "talks", "--invocation", ticket.invocation, "--nats", node.info["nats"])
        assert (code, err) == (0, "")
    lines = out.splitlines()

    assert len(lines) == 3
    assert lines[0].endswith("hello 9")
    assert "\\x1b[31mred" in lines[1]
    assert "50% half" in lines[2]


async def test_logs_of_a_silent_function_say_that_there_are_none(node: Node) -> None:
    """No line at all looks like a verb that does not work."""
    code, out, err = await command("logs", "square", "--nats", node.info["nats"])

    assert (code, out) == (0, "")
    assert "square has printed and logged nothing" in err
    assert await command("logs", "square", "--json", "--nats", node.info["nats"]) == (0, "", "")


async def test_an_invocation_id_is_no_ticket(client: Client) -> None:
    """It is what `faas invoke --async` prints, so it is what people give; a ticket also says whose it is."""
    ticket = await client.submit("square", 12)

    with pytest.raises(ConfigInvalid, match=r"give what submit returned, or faas\.Ticket"):
        await client.outcome(ticket.invocation)  # type: ignore[arg-type]
    assert (await client.outcome(faas.Ticket("default", "square", ticket.invocation))).result == 144


async def test_logs_follow_prints_lines_of_a_running_function(node: Node, client: Client) -> None:
    """`faas logs -f` in one terminal, events in another."""
    process = await asyncio.create_subprocess_exec(
        *FAAS, "logs", "talks", "-f", "--json", "--nats", node.info["nats"], cwd=PROJECT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        ticket = await client.submit("talks", 10)
        while True:
            line = json.loads(await process.stdout.readline())
            if line["invocation"] == ticket.invocation and line["message"] == "half":
                break
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("logs", "nosuch"), 1, "no function nosuch"),
        (("logs", "No Such"), 1, "a name begins with"),
        (("logs", "talks", "--invocation", "a.b"), 2, "is no invocation"),
        (("logs", "talks", "--since", "soon"), 2, "since: 'soon'"),
        (("invoke", "count", "3", "--stream", "--async"), 2, "give one of the two"),
    ],
)
async def test_what_cannot_be_is_said_in_one_sentence(node: Node, arguments: tuple[str, ...], code: int, said: str) -> None:
    """And the exit code tells a script which kind of error it was."""
    found, out, err = await command(*arguments, "--nats", node.info["nats"])

    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


async def test_an_outcome_says_which_invocation(node: Node, client: Client) -> None:
    """The ticket and the outcome's header name the same."""
    ticket = await client.submit("square", 2, id="order-17")
    reply = await client.outcome(ticket)

    assert reply.headers["Faas-Invocation"] == ticket.invocation
