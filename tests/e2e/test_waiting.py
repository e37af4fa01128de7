"""What waits outside a delivery, on a real node: back-offs beyond five seconds, and dead letters that are run again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from node import Node, command, end, head, running, write_function

import faas
from faas.client import Client

SWITCH = "import os\ndef handle(event, ctx):\n    if os.path.exists({path!r}):\n        return [ctx.attempt, ctx.event.id]\n    raise ValueError('not yet')\n"


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root: Path = tmp_path_factory.mktemp("waiting")
    functions = root / "functions"
    later = "import faas\ndef handle(event, ctx):\n    if ctx.attempt == 1:\n        raise faas.Retry(5.2)\n    return [ctx.attempt, ctx.event.id]\n"
    write_function(functions, "later", later, '[[trigger]]\nsubject = "waiting.later"\n')
    for name in ("broken", "others"):
        code = SWITCH.format(path=str(root / f"{name}-mended"))
        write_function(functions, name, code, f'[[trigger]]\nsubject = "waiting.{name}"\n[limits]\nqueue_timeout = "2s"\n')
    async with running(functions, root / "state") as started:
        await started.watch()
        yield started


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with faas.connect(node.info["nats"]) as connected:
        yield connected


@pytest.mark.timeout(30)
async def test_a_long_back_off_waits_as_a_schedule_and_holds_no_delivery(node: Node) -> None:
    """A thousand back-offs of a minute would fill what a consumer may have unacknowledged, and stop the function."""
    stream = node.client.jetstream()
    await stream.publish("waiting.later", b"1", headers={"Nats-Msg-Id": "later-1", "traceparent-x": "kept"})
    while not await node.count("FAAS_SCHEDULES", "faas.retry.default.later.*"):
        pass
    consumers = [info for info in await stream.consumers_info("FAAS_EVENTS") if info.name.startswith("default-later-")]
    while any(info.num_ack_pending for info in consumers):
        consumers = [info for info in await stream.consumers_info("FAAS_EVENTS") if info.name.startswith("default-later-")]
    outcome = await node.outcome("later-1", wait_s=15)

    assert end(outcome) == ("succeeded", "")
    assert json.loads(outcome.data) == [2, "later-1"]
    assert [record["attempt"] for record in json.loads(head(outcome)["Faas-Usage"])] == [1, 2]
    assert await node.count("FAAS_SCHEDULES", "faas.retry.default.later.*") == 0


async def dead(node: Node, client: Client, function: str, event_id: str) -> str:
    """Have an event of this id end as a dead letter; its invocation."""
    outcome = await node.event(f"waiting.{function}", b'{"n": 1}', id=event_id, headers={"Content-Type": "application/json"})
    invocation = head(outcome)["Faas-Invocation"]
    await node.letter(function, invocation)
    return invocation


@pytest.mark.timeout(30)
async def test_a_letter_is_listed_shown_and_redriven(node: Node, client: Client, tmp_path: Path) -> None:
    """The function was mended; its failed events run again, as themselves, and the letters are gone."""
    url = node.info["nats"]
    first = await dead(node, client, "broken", "broken-1")
    second = await dead(node, client, "broken", "broken-2")
    code, out, _ = await command("dlq", "list", "--function", "broken", "--json", "--nats", url)
    listed = json.loads(out)

    assert code == 0
    assert [letter["invocation"] for letter in listed] == [first, second]
    assert {(letter["reason"], letter["subject"]) for letter in listed} == {("error", "waiting.broken")}
    code, out, _ = await command("dlq", "show", first, "--json", "--nats", url)
    assert json.loads(out)["body"] == '{"n": 1}'
    code, out, _ = await command("dlq", "show", first, "--nats", url)
    assert out.splitlines()[-1].endswith(f"faas why {first}")
    (node.state.parent / "broken-mended").touch()
    node.outcomes.clear()
    code, out, err = await command("dlq", "redrive", "--function", "broken", "--json", "--nats", url)
    again = {row["letter"]: row["invocation"] for row in json.loads(out)}

    assert (code, err) == (0, "")
    assert set(again) == {first, second}
    for event_id, letter in (("broken-1", first), ("broken-2", second)):
        outcome = await node.outcome(event_id)
        assert end(outcome) == ("succeeded", "")
        assert json.loads(outcome.data) == [1, event_id]
        assert head(outcome)["Faas-Invocation"] == again[letter] != letter
        assert head(outcome)["Faas-Redrive-Of"] == letter
    assert [letter async for letter in client.letters("broken")] == []


async def test_headers_of_an_event_that_look_like_a_letters_own_hide_no_letter(node: Node, client: Client) -> None:
    """Whoever publishes writes any header: one letter that cannot be read would keep all others of its tenant from being listed."""
    own = {"Faas-Body-Bytes": "many", "Faas-Detail": "nothing is wrong"}
    outcome = await node.event("waiting.others", b"1", id="others-headers", headers={"Faas-Deadline": "2020-01-01T00:00:00Z", **own})
    await node.letter("others", head(outcome)["Faas-Invocation"])
    code, out, err = await command("dlq", "list", "--function", "others", "--json", "--nats", node.info["nats"])

    assert (code, err) == (0, "")
    (listed,) = [letter for letter in json.loads(out) if letter["event_id"] == "others-headers"]
    assert "detail" not in listed
    await client.redrive(next(iter([letter async for letter in client.letters("others", invocations=[listed["invocation"]])])))


@pytest.mark.timeout(30)
async def test_a_letter_whose_function_is_gone_stays(node: Node, client: Client) -> None:
    """Its event would wait for a function that nobody serves, and the letter, the last that is left of it, would be gone."""
    folder = node.state.parent / "leaving"
    write_function(folder, "leaves", "def handle(event):\n    raise ValueError('no')\n")
    assert (await command("deploy", str(folder), "--nats", node.info["nats"]))[0] == 0
    while not [report for report in await client.functions("leaves") if report.state == "ready"]:
        pass
    outcome = await client.outcome(await client.submit("leaves", 1))
    invocation = outcome.headers["Faas-Invocation"]
    await node.letter("leaves", invocation)
    assert (await command("functions", "remove", "leaves", "--purge", "--nats", node.info["nats"]))[0] == 0
    code, out, err = await command("dlq", "redrive", invocation, "--nats", node.info["nats"])

    assert code == 1
    assert "faas deploy" in out, (out, err)
    assert len(await node.letters("leaves", invocation)) == 1


@pytest.mark.timeout(30)
async def test_a_redriven_event_may_succeed_however_old_it_is(node: Node, client: Client) -> None:
    """Its age starts again, and a deadline that it had counts no more: it was an operator who asked."""
    past = "2020-01-01T00:00:00Z"
    expired = await node.event("waiting.others", b"1", id="others-old", headers={"Faas-Deadline": past})
    await node.letter("others", head(expired)["Faas-Invocation"])
    (node.state.parent / "others-mended").touch()
    node.outcomes.clear()
    (letter,) = [letter async for letter in client.letters("others", invocations=[head(expired)["Faas-Invocation"]])]
    ticket = await client.redrive(letter)
    reply = await client.outcome(ticket)

    assert end(expired) == ("expired", "deadline")
    assert reply.outcome == "succeeded"
    assert reply.result[1] == "others-old"


async def test_an_event_that_cannot_be_decoded_is_not_redriven(node: Node, client: Client) -> None:
    """It would end the same way, for ever; the letter stays, and its sender is who can help."""
    await node.client.jetstream().publish("waiting.broken", b"", headers={"Faas-Timeout": "soon", "Nats-Msg-Id": "undecodable"})
    found = []
    while not found:
        found = [letter async for letter in client.letters("broken") if letter.reason == "event_invalid"]
    code, out, err = await command("dlq", "redrive", found[0].invocation, "--nats", node.info["nats"])

    assert code == 1
    assert "cannot be decoded" in out
    assert err == ""
    assert [letter async for letter in client.letters("broken", invocations=[found[0].invocation])]
    code, out, _ = await command("dlq", "purge", "--function", "broken", "--nats", node.info["nats"])
    assert (code, out) == (0, "1 thrown away\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("redrive",), 2, "say which letters"),
        (("purge",), 2, "say which letters"),
        (("show", "a" * 26), 1, "no dead letter"),
        (("redrive", "a" * 26), 1, "no dead letter"),
        (("purge", "a" * 26), 1, "no dead letter"),
        (("list", "--since", "soon"), 2, "soon"),
        (("list", "--limit", "0"), 2, "at least 1"),
        (("list", "--function", "No"), 1, "a name begins with"),
    ],
)
async def test_what_is_not_there_or_not_meant_is_said(node: Node, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Nothing is thrown away by a verb typed without what it means."""
    found, out, err = await command("dlq", *arguments, "--nats", node.info["nats"])

    assert found == code
    assert said in out + err
    assert "Traceback" not in err


async def test_who_writes_on_due_without_its_headers_runs_nothing(node: Node) -> None:
    """Only the runtime and its operators may write there; what is no invocation is a dead letter."""
    before = len(await node.stored("FAAS_DEAD", "faas.dead.default.broken"))
    await node.client.jetstream().publish("faas.due.default.broken", b"1", headers={"Faas-Invocation": "short"})
    while len(letters := await node.stored("FAAS_DEAD", "faas.dead.default.broken")) == before:
        pass

    assert head(letters[-1])["Faas-Reason"] == "event_invalid"
