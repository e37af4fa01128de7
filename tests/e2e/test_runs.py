"""Seeing what runs and ran: `faas runs`, `faas why`, `/metrics`, trace context, and the last line of a node."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from node import ECHO, Node, command, head, running, stop, write_function
from node import ready as until_ready

import faas
from faas.errors import ConfigInvalid, NoSuchInvocation

SLOW = "import time\ndef handle(event: float):\n    time.sleep(event)\n    return event\n"
FUNCTIONS = {
    "echo": ("def handle(event: int):\n    print('saw', event)\n    return event\n", "[limits]\ntimeout = '5s'\n"),
    "raises": ("def handle(event):\n    raise ValueError('no such picture')\n", ""),
    "dies": (
        "import os, signal\ndef handle(event):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
        '[retry]\nmax_attempts = 2\nbackoff = "1ms"\n',
    ),
    "patient": (
        "import faas\ndef handle(event, ctx):\n    if ctx.attempt == 1:\n        raise faas.Retry(4)\n    return ctx.attempt\n",
        "",
    ),
    "later": ("import faas\ndef handle(event):\n    raise faas.Retry(3600)\n", ""),
    "slow": (SLOW, "[scale]\nmax_workers = 1\n"),
    "traced": (
        "def handle(event, ctx):\n    ctx.publish('traced.said', 1)\n    return ctx.traceparent\n",
        '[output]\npublish = "traced.out"\n',
    ),
}
CAME = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def write(root: Path) -> Path:
    for name, (code, spec) in FUNCTIONS.items():
        write_function(root, name, code, f'{spec}[[trigger]]\nsubject = "runs.{name}"\n')
    return root


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root = tmp_path_factory.mktemp("runs")
    async with running(write(root / "functions"), root / "state", environ={"FAAS_BUS__ACK_WAIT": "2s"}) as node:
        await node.watch()
        yield node


@pytest.fixture
async def client(node: Node) -> AsyncIterator[faas.client.Client]:
    async with faas.connect(node.info["nats"]) as client:
        yield client


def where(node: Node) -> tuple[str, str]:
    return "--state", str(node.state)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def until(client: faas.client.Client, invocation: str, state: str) -> faas.calling.history.Why:
    """Why it is where it is, once it is in this state."""
    async with asyncio.timeout(8):
        while (said := await client.why(invocation)).state != state:
            pass
    return said


# ---------------------------------------------------------------- runs


async def test_what_ran_is_listed_newest_first_with_its_phases(node: Node, client: faas.client.Client) -> None:
    """Stored and synchronous alike."""
    await client.invoke("echo", 1)
    ticket = await client.submit("echo", 2)
    await client.outcome(ticket)
    async with asyncio.timeout(8):
        while len(found := await client.runs(function="echo", limit=2)) < 2 or not found[0].node:
            pass

    assert found[0].invocation == ticket.invocation
    assert {run.outcome for run in found} == {"succeeded"}
    assert found[0].node == node.info["node"]
    assert (found[0].accepted_ms > 0, found[1].accepted_ms) == (True, 0)


async def test_one_run_is_shown_with_attempts_usage_log_and_dead_letter(node: Node) -> None:
    """Everything that anybody asks about a failure, in one place."""
    message = await node.event("runs.dies", b"1", id="dies-1")
    invocation = head(message)["Faas-Invocation"]
    await node.records("dies", invocation, at_least=2)
    code, out, err = await command("runs", invocation, *where(node), "--json")
    shown = json.loads(out)

    assert (code, err) == (0, "")
    assert (shown["outcome"], shown["reason"], shown["attempts"]) == ("crashed", "worker_lost", 2)
    assert "SIGKILL" in shown["detail"]
    attempts = [one for one in shown["tries"] if one["kind"] == "attempt"]
    assert [one["attempt"] for one in attempts] == [1, 2]
    assert all(one["cpu_us"] >= 0 and one["start"] and one["node"] == node.info["node"] for one in attempts)
    assert shown["dead_letter"]["stream"] == "FAAS_DEAD"


async def test_one_run_is_shown_with_what_it_printed(node: Node) -> None:
    """For people, as lines."""
    message = await node.event("runs.echo", b"7", id="echo-7")
    invocation = head(message)["Faas-Invocation"]
    await node.records("echo", invocation)
    async with asyncio.timeout(8):
        while not await node.count("FAAS_LOGS", f"faas.log.default.echo.{invocation}"):
            pass
    code, out, _ = await command("runs", invocation, *where(node))

    assert code == 0
    assert f"{invocation} of default/echo: succeeded" in out
    assert "on runs.echo (FAAS_EVENTS" in out
    assert "attempt 1: succeeded" in out
    assert "saw 7" in out


@pytest.mark.parametrize(
    ("options", "function"), [(("--function", "raises"), "raises"), (("--outcome", "failed"), "raises"), (("--since", "0ms"), "")]
)
async def test_the_list_is_filtered(node: Node, options: tuple[str, ...], function: str) -> None:
    """By function, outcome and time."""
    await node.event("runs.raises", b"1", id="raises-1")
    code, out, _ = await command("runs", *options, *where(node), "--json")

    assert code == 0
    assert {run["function"] for run in json.loads(out)} == ({function} if function else set())


async def test_the_list_is_a_table_for_people(node: Node) -> None:
    """One line a run."""
    await node.event("runs.raises", b"1", id="raises-2")
    code, out, _ = await command("runs", "--function", "raises", "--limit", "1", *where(node))

    assert code == 0
    assert len(out.splitlines()) == 2
    assert "failed error" in out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("runs", "x" * 26), 1, "no invocation"),
        (("why", "x" * 26), 1, "no invocation"),
        (("why", "a.b"), 2, "is no invocation"),
        (("why", "nope"), 2, "has 26 letters and digits, as `faas runs`"),
        (("runs", "nope"), 2, "is no invocation"),
        (("runs", "--since", "yesterday"), 2, "is no moment"),
        (("runs", "--outcome", "sad"), 2, "is none; open, cancelled"),
        (("runs", "--limit", "0"), 2, "between 1 and 500"),
    ],
)
async def test_what_cannot_be_answered_is_said_in_one_sentence(node: Node, arguments: tuple[str, ...], status: int, said: str) -> None:
    """With what would be right."""
    code, out, err = await command(*arguments, *where(node))

    assert (code, out) == (status, "")
    assert said in err
    assert len(err.splitlines()) == 1


async def test_a_program_gets_exceptions(client: faas.client.Client) -> None:
    """Each with a code of its own."""
    with pytest.raises(NoSuchInvocation):
        await client.run("x" * 26)
    with pytest.raises(ConfigInvalid):
        await client.runs(limit=501)


# ---------------------------------------------------------------- why


async def test_what_runs_and_what_waits_behind_it_say_so(node: Node, client: faas.client.Client) -> None:
    """Running where, waiting for what."""
    first = await client.submit("slow", 1.5)
    running_now = await until(client, first.invocation, "running")
    second = await client.submit("slow", 0)
    async with asyncio.timeout(8):
        while "queue of node" not in (waiting := await client.why(second.invocation)).because:
            pass
    await client.outcome(second)

    assert (running_now.node, bool(running_now.worker)) == (node.info["node"], True)
    assert "scale.max_workers: 1 of 1" in waiting.because
    assert (await until(client, first.invocation, "ended")).outcome == "succeeded"


async def test_a_synchronous_call_that_runs_is_known_to_its_node(node: Node, client: faas.client.Client) -> None:
    """Nothing stored it, and whoever waits for it wants to know all the same."""
    call = asyncio.ensure_future(node.request("slow", b"1.0"))
    async with asyncio.timeout(8):
        while not (await metrics(node)).get('faas_workers{function="slow",state="leased",tenant="default"}'):
            pass
    await call

    assert (await client.runs(function="slow", limit=1))[0].accepted_ms == 0


async def test_a_back_off_says_that_it_is_one_and_after_what(node: Node, client: faas.client.Client) -> None:
    """It looks like a lost event otherwise."""
    ticket = await client.submit("patient", 1)
    async with asyncio.timeout(8):
        while "back-off" not in (said := await client.why(ticket.invocation)).because:
            pass

    assert said.state == "waiting"
    assert "It is tried again after one attempt: error" in said.because
    assert (await client.outcome(ticket)).result == 2


async def test_a_long_back_off_says_until_when_and_is_open(node: Node, client: faas.client.Client) -> None:
    """It waits in a schedule: neither pending nor lost, and still to be cancelled."""
    ticket = await client.submit("later", 1)
    async with asyncio.timeout(8):
        while "until" not in (said := await client.why(ticket.invocation)).because:
            pass
    key = '{function="later",tenant="default"}'
    async with asyncio.timeout(8):
        while (found := await metrics(node)).get(f"faas_events_open{key}") != 1:
            await client.runs(limit=1)
    cancelled = await client.cancel(ticket)

    assert said.because.startswith("it is in a back-off until 20")
    assert found[f"faas_conservation_imbalance{key}"] == 0
    assert cancelled.cancelled
    assert (ended := await until(client, ticket.invocation, "ended")).outcome == "cancelled"
    assert "cancelled: cancelled" not in ended.because


async def test_a_cancelled_run_says_so_once(node: Node, client: faas.client.Client) -> None:
    """Its outcome and its reason are one word; both of them read like a mistake."""
    ticket = await client.submit("later", 2)
    async with asyncio.timeout(8):
        while "until" not in (await client.why(ticket.invocation)).because:
            pass
    await client.cancel(ticket)
    ended = await until(client, ticket.invocation, "ended")
    _, listed, _ = await command("runs", "--outcome", "cancelled", "--limit", "1", *where(node))
    _, shown, _ = await command("runs", ticket.invocation, *where(node))

    assert listed.split().count("cancelled") == 1
    assert shown.splitlines()[0].endswith(": cancelled: somebody cancelled it")
    assert ended.chain[0].endswith("failed: error: Retry: retry after 3600 s")  # why the attempt ended, and not why no other follows


async def test_an_end_is_explained_by_the_chain_of_its_attempts(node: Node) -> None:
    """Reason and detail of each."""
    message = await node.event("runs.dies", b"1", id="dies-2")
    invocation = head(message)["Faas-Invocation"]
    await node.records("dies", invocation, at_least=2)
    code, out, _ = await command("why", invocation, *where(node))
    lines = out.splitlines()

    assert code == 0
    assert lines[0].startswith(f"{invocation} of default/dies ended: crashed: worker_lost at ")
    assert "its event is a dead letter, FAAS_DEAD" in lines[0]
    assert len(lines) == 3
    assert "SIGKILL" in lines[2]


async def test_any_node_tells_of_the_runs_of_another_that_is_gone(tmp_path: Path, node: Node) -> None:
    """Nodes come and go; what happened is on the bus."""
    write_function(tmp_path / "functions", "elsewhere", ECHO)
    (tmp_path / "state").mkdir()
    options = ("--nats", node.info["nats"], "--node", "second")
    arguments = [*options, "--functions", str(tmp_path / "functions"), "--state", str(tmp_path / "state"), "--http", "127.0.0.1:0"]
    process = await up(tmp_path, arguments)
    await node.client.request("$SRV.PING.faas.second", b"", timeout=5)
    message = await node.event("runs.raises", b"1", id="raises-3")
    answer = await node.client.request("faas.node.second.runs", b'{"function":"raises","limit":1}', timeout=8)
    told = json.loads(answer.data)
    await stop(process)

    assert told["node"] == "second"
    assert told["runs"][0]["invocation"] == head(message)["Faas-Invocation"]


async def test_events_in_a_stream_of_the_users_own_are_runs_too(tmp_path: Path, node: Node, client: faas.client.Client) -> None:
    """Accepted there, they are as much a promise as in the runtime's."""
    await node.client.jetstream().add_stream(name="MINE", subjects=["mine.>"])
    write_function(tmp_path / "functions", "own", ECHO, '[[trigger]]\nsubject = "mine.own"\nstream = "MINE"\n')
    (tmp_path / "state").mkdir()
    options = ("--nats", node.info["nats"], "--node", "third", "--http", "127.0.0.1:0")
    process = await up(tmp_path, [*options, "--functions", str(tmp_path / "functions"), "--state", str(tmp_path / "state")])
    outcome = await node.event("mine.own", b"1", id="own-1")
    run = (await client.run(head(outcome)["Faas-Invocation"])).run
    key = 'faas_conservation_imbalance{function="own",tenant="default"}'
    async with asyncio.timeout(8):
        while (await metrics(node)).get(key) != 0:
            await client.runs(limit=1)
    await stop(process)

    assert (run.stream, run.subject, run.outcome) == ("MINE", "mine.own", "succeeded")


async def up(root: Path, arguments: list[str]) -> asyncio.subprocess.Process:
    """A node on a bus that is there already."""
    from node import FAAS, PROJECT

    with (root / "state" / "node.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*FAAS, "up", *arguments, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
    await until_ready(process, root / "state")
    return process


async def test_a_letter_that_was_redriven_is_none_any_more_and_the_new_run_names_the_old(node: Node, client: faas.client.Client) -> None:
    """Else somebody would look for what is gone."""
    message = await node.event("runs.raises", b"1", id="raises-5")
    invocation = head(message)["Faas-Invocation"]
    await node.letter("raises", invocation)
    before = await client.run(invocation)
    (letter,) = [one async for one in client.letters("raises", invocations=[invocation])]
    again = await client.redrive(letter)
    await client.outcome(again)

    assert before.letter is not None
    assert (await client.run(invocation)).letter is None
    assert (await client.run(again.invocation)).run.redrive_of == invocation


async def test_a_question_that_is_none_is_answered_in_words(node: Node) -> None:
    """Anybody on the bus may ask; nobody may break it."""
    subject = f"faas.node.{node.info['node']}"
    answer = json.loads((await node.client.request(f"{subject}.runs", b"[", timeout=5)).data)
    nothing = json.loads((await node.client.request(f"{subject}.why", b"\xff", timeout=5)).data)

    assert "cannot be read" in answer["absent"]
    assert nothing == {"node": node.info["node"]}


# ---------------------------------------------------------------- metrics, traces, readiness


async def metrics(node: Node) -> dict[str, float]:
    status, text = await asyncio.to_thread(get, node.info["http"] + "/metrics")
    assert status == 200
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))}


async def test_ends_are_counted_and_the_balance_is_struck(node: Node, client: faas.client.Client) -> None:
    """Accepted = open + settled, or an alarm rings."""
    await node.event("runs.raises", b"1", id="raises-4")
    async with asyncio.timeout(8):
        while (found := await metrics(node)).get('faas_conservation_imbalance{function="raises",tenant="default"}') != 0:
            await client.runs(limit=1)

    assert found['faas_errors_total{function="raises",outcome="failed",reason="error",tenant="default"}'] >= 1
    assert found["faas_bus_connected"] == 1
    assert found["faas_conservation_checked_timestamp_seconds"] > 0
    # Below 0 is what was cancelled in a back-off: ended, and its schedule has not fired yet.
    assert max(value for name, value in found.items() if name.startswith("faas_conservation_imbalance")) == 0


async def test_a_trace_goes_through_a_function_and_out(node: Node) -> None:
    """Whoever follows it sees what the function caused below the function."""
    heard: asyncio.Queue[Any] = asyncio.Queue()
    subscriptions = [await node.client.subscribe(subject, cb=heard.put) for subject in ("traced.said", "traced.out")]
    message = await node.event("runs.traced", b"1", id="traced-1", headers={"traceparent": CAME, "tracestate": "a=b"})
    said = [await asyncio.wait_for(heard.get(), 5) for _ in range(2)]
    for subscription in subscriptions:
        await subscription.unsubscribe()
    inside = json.loads(message.data)

    assert inside.split("-")[1] == CAME.split("-")[1]
    assert inside != CAME
    assert [head(message)["traceparent"], *(head(one)["traceparent"] for one in said)] == [inside] * 3
    assert [head(one)["tracestate"] for one in said] == ["a=b"] * 2
