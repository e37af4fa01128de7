"""Cancelling, on a real node: whatever an invocation does at that moment, one outcome holds, and its worker is free again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from node import Node, command, end, head, running, write_function

import faas
from faas.client import Client

FUNCTIONS = {
    "polite": (
        "import time\ndef handle(event, ctx):\n    print('began', flush=True)\n    while not ctx.cancelled:\n        time.sleep(0.01)\n    return 'stopped'\n"
    ),
    "awaits": (
        "import asyncio\nasync def handle(event, ctx):\n    print('began', flush=True)\n    try:\n        await asyncio.sleep(60)\n"
        "    except asyncio.CancelledError:\n        print('cleaned up')\n        raise\n"
    ),
    "deaf": (
        "import signal, time\ndef handle(event):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    print('began', flush=True)\n    time.sleep(60)\n"
    ),
    "loads": "import time\nprint('began', flush=True)\ntime.sleep(60)\ndef handle(event):\n    return 1\n",
    "again": "import faas\ndef handle(event, ctx):\n    raise faas.Retry(60)\n",
    "soon": "import faas\ndef handle(event, ctx):\n    raise faas.Retry(4)\n",
    "one": "import time\ndef handle(event: float):\n    print('began', flush=True)\n    time.sleep(event)\n    return event\n",
}


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root: Path = tmp_path_factory.mktemp("cancel")
    for name, code in FUNCTIONS.items():
        workers = "[scale]\nmax_workers = 1\n" if name == "one" else ""
        write_function(root / "functions", name, code, f'[[trigger]]\nsubject = "cancel.{name}"\n{workers}')
    async with running(root / "functions", root / "state") as started:
        await started.watch()
        yield started


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with faas.connect(node.info["nats"]) as connected:
        yield connected


async def began(client: Client, function: str, invocation: str) -> None:
    """Wait until its handler runs."""
    async with aclosing(client.logs(function, invocation=invocation, follow=True)) as lines:
        async for line in lines:
            if line.message == "began":
                return


@pytest.mark.parametrize("function", ["polite", "awaits", "deaf", "loads"])
async def test_what_runs_is_cancelled_and_its_worker_is_free(node: Node, client: Client, function: str) -> None:
    """A handler that listens stops at once; one that does not is killed after two seconds. Either way the outcome is there at once."""
    ticket = await client.submit(function, 1)
    await began(client, function, ticket.invocation)
    answer = await client.cancel(ticket)
    reply = await client.outcome(ticket)
    (record,) = await node.records(function, ticket.invocation)

    assert answer.cancelled
    assert (reply.outcome, reply.reason) == ("cancelled", "cancelled")
    assert record["outcome"] == "cancelled"
    assert record["billable"]
    assert await node.letters(function, ticket.invocation) == []
    again = await client.cancel(ticket)
    assert (again.cancelled, again.outcome) == (False, "cancelled")


@pytest.mark.parametrize("function", ["again", "soon"])
async def test_what_waits_in_a_back_off_is_cancelled_and_runs_no_more(node: Node, client: Client, function: str) -> None:
    """A schedule cannot be asked; when it is due, the outcome is found."""
    ticket = await client.submit(function, 1, id=f"{function}-é")
    while not await node.count("FAAS_OUTCOMES", f"faas.attempt.default.{function}.{ticket.invocation}"):
        pass
    answer = await client.cancel(ticket.invocation)  # by its id alone
    reply = await client.outcome(ticket)

    assert answer.cancelled
    assert reply.outcome == "cancelled"
    assert reply.headers["Faas-Event-Id"] == f"{function}-%C3%A9"
    assert reply.headers["Faas-Version"]
    assert [record["attempt"] for record in json.loads(reply.headers["Faas-Usage"])] == [1]


async def test_what_waits_for_a_worker_is_cancelled_and_never_starts(node: Node, client: Client) -> None:
    """On the node's queue behind another; and in the stream behind that."""
    blocker = await client.submit("one", 2.0)
    await began(client, "one", blocker.invocation)
    waiting = [await client.submit("one", 0.0, id=f"one-{n}") for n in range(40)]
    answers = [await client.cancel(waiting[0]), await client.cancel(waiting[-1].invocation)]
    outcomes = [await client.outcome(ticket) for ticket in (waiting[0], waiting[-1], blocker, waiting[1])]

    assert all(answer.cancelled for answer in answers)
    assert [reply.outcome for reply in outcomes] == ["cancelled", "cancelled", "succeeded", "succeeded"]
    assert outcomes[0].headers["Faas-Attempt"] == "0"
    assert [reply.headers["Faas-Event-Id"] for reply in outcomes[:2]] == ["one-0", "one-39"]
    assert all(reply.headers["Faas-Version"] for reply in outcomes)
    records = [record for message in await node.stored("FAAS_USAGE", "faas.usage.default.one") for record in json.loads(message.data)]
    assert not [record for record in records if record["invocation_id"] in (waiting[0].invocation, waiting[-1].invocation)]


async def test_a_synchronous_call_is_cancelled_where_it_runs(node: Node, client: Client) -> None:
    """Its id is random and known from its log; its caller is answered."""
    calling = asyncio.ensure_future(node.request("polite", b"1"))
    async with aclosing(client.logs("polite", follow=True)) as lines:
        async for line in lines:
            if (await client.cancel(line.invocation, function="polite")).cancelled:
                break

    assert end(await calling) == ("cancelled", "cancelled")


async def test_what_has_ended_cannot_be_cancelled(client: Client) -> None:
    """The answer says how it ended."""
    ticket = await client.submit("one", 0.0)
    await client.outcome(ticket)
    answer = await client.cancel(ticket)

    assert (answer.cancelled, answer.known, answer.outcome) == (False, True, "succeeded")


async def test_what_nobody_knows_leaves_nothing_behind(node: Node, client: Client) -> None:
    """A typing error must not become an outcome."""
    answer = await client.cancel("a" * 26)

    assert (answer.cancelled, answer.known) == (False, False)
    assert await node.count("FAAS_OUTCOMES", f"faas.outcome.default.*.{'a' * 26}") == 0


@pytest.mark.timeout(30)
async def test_the_verb_says_what_became_of_it(node: Node, client: Client) -> None:
    """Exit 0 where the cancel won, 1 where it came too late or nothing has that id, 2 where that is no id."""
    url = node.info["nats"]
    ticket = await client.submit("polite", 1)
    await began(client, "polite", ticket.invocation)

    assert await command("cancel", ticket.invocation, "--nats", url) == (0, f"{ticket.invocation}: cancelled\n", "")
    code, _, err = await command("cancel", ticket.invocation, "--nats", url)
    assert (code, "too late, it has ended as cancelled" in err) == (1, True)
    code, out, _ = await command("cancel", "b" * 26, "--json", "--nats", url)
    assert (code, json.loads(out)["known"]) == (1, False)
    code, _, err = await command("cancel", "x", "--nats", url)
    assert (code, "is no invocation" in err) == (2, True)
    assert head(await node.request("one", b"0"))["Faas-Outcome"] == "succeeded"
