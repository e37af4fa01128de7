"""Idempotency keys on the bus and over HTTP: one run, one bill and one outcome for whoever repeats, seen by foreign clients on a real node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from doors import Doors, problem
from keyed import KEY, began, functions_in, payload, runs, same
from nats.aio.msg import Msg
from node import SHORT_LEASE, Node, command, end, head, running

import faas
from faas.identity import invocation_id


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root = tmp_path_factory.mktemp("keys")
    async with running(functions_in(root), root / "state", environ=SHORT_LEASE) as node:
        yield node


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a function leaves one file for each time that it runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@asynccontextmanager
async def http(node: Node) -> AsyncIterator[Doors]:
    async with aiohttp.ClientSession(node.info["http"]) as session:
        yield Doors(node, session)


# ---------------------------------------------------------------- on the bus


async def test_a_repetition_gets_the_first_outcome_and_nothing_runs_or_is_billed_twice(node: Node, folder: Path) -> None:
    """What the key is for: a caller that heard no answer sends the request again."""
    first = await node.request("counts", payload(folder), headers={KEY: "order-1"})
    second = await node.request("counts", payload(folder), headers={KEY: "order-1"})

    assert end(first) == ("succeeded", "")
    assert same(first, second)
    assert runs(folder) == 1
    invocation = head(first)["Faas-Invocation"]
    assert invocation == invocation_id("default", "counts", source="", event_id="order-1")
    assert head(first)["Faas-Event-Id"] == "order-1"
    (stored,) = await node.stored("FAAS_OUTCOMES", f"faas.outcome.default.counts.{invocation}")
    assert stored.data == first.data
    assert len(await node.records("counts", invocation)) == 1


async def test_repetitions_at_once_wait_for_the_one_that_runs(node: Node, folder: Path) -> None:
    """Two of a caller's threads, or a proxy that is impatient: each gets the answer, none a refusal."""
    asked = [asyncio.create_task(node.request("waits", payload(folder), headers={KEY: "at-once"})) for _ in range(6)]
    await began(folder)
    asked.append(asyncio.create_task(node.request("waits", payload(folder), headers={KEY: "at-once"})))
    (folder.parent / "go").touch()
    answers = await asyncio.gather(*asked)

    assert all(same(answers[0], answer) for answer in answers)
    assert json.loads(answers[0].data) == "went"
    assert runs(folder) == 1


async def test_the_same_key_with_another_payload_is_refused(node: Node, folder: Path) -> None:
    """A key that is used for two things is a mistake of its caller, and either answer would be wrong."""
    await node.request("counts", payload(folder), headers={KEY: "mixed"})
    other = await node.request("counts", payload(folder, n=2), headers={KEY: "mixed"})

    assert end(other) == ("rejected", "event_invalid")
    assert "another payload" in json.loads(other.data)["detail"]
    assert head(other)["Nats-Service-Error-Code"] == "400"
    assert runs(folder) == 1


async def test_another_payload_is_refused_while_the_first_runs(node: Node, folder: Path) -> None:
    """Nothing is stored yet that it could be compared with but the claim of the key."""
    first = asyncio.create_task(node.request("waits", payload(folder), headers={KEY: "mixed-early"}))
    await began(folder)
    other = await node.request("waits", payload(folder, n=2), headers={KEY: "mixed-early"})
    (folder.parent / "go").touch()

    assert end(other) == ("rejected", "event_invalid")
    assert end(await first) == ("succeeded", "")


async def test_one_key_is_another_for_each_function(node: Node, folder: Path) -> None:
    """A caller numbers its orders, and has several functions work on each."""
    one = await node.request("counts", payload(folder), headers={KEY: "shared"})
    other = await node.request("fleeting", payload(folder), headers={KEY: "shared"})

    assert [json.loads(answer.data)["ran"] for answer in (one, other)] == [1, 2]


async def test_a_failure_is_repeated_as_the_failure_that_it_was(node: Node, folder: Path) -> None:
    """An outcome is an outcome; a second run is asked for with a second key."""
    first = await node.request("fails", payload(folder), headers={KEY: "failing"})
    second = await node.request("fails", payload(folder), headers={KEY: "failing"})

    assert end(first) == ("failed", "error")
    assert head(first)["Nats-Service-Error-Code"] == "500"
    assert same(first, second)
    assert runs(folder) == 1


async def test_an_event_that_is_taken_at_most_once_is_stored_where_it_has_a_key(node: Node, folder: Path) -> None:
    """Published twice it runs once, and each of the two is told where it asked to be."""
    heard = asyncio.Queue[Msg]()
    subscription = await node.client.subscribe("keys.outcomes", cb=heard.put)
    for _ in range(2):
        headers = {KEY: "fleeting-1", "Faas-Reply-To": "keys.outcomes"}
        await node.client.publish("keys.fleeting", payload(folder), headers=headers)
    async with asyncio.timeout(8):
        first, second = await heard.get(), await heard.get()
    await subscription.unsubscribe()

    assert end(first) == ("succeeded", "")
    assert same(first, second)
    assert runs(folder) == 1
    assert head(first)["Faas-Invocation"] == invocation_id("default", "fleeting", source="", event_id="fleeting-1")


@pytest.mark.parametrize("key", ["", "x" * 256, "ключ"])
async def test_a_key_out_of_bounds_is_refused(node: Node, key: str) -> None:
    """It becomes part of an identity that is kept; an empty one would be the same for everybody."""
    answer = await node.request("counts", b"{}", headers={KEY: key})

    assert end(answer) == ("rejected", "event_invalid")
    assert "1 to 255 printable ASCII" in json.loads(answer.data)["detail"]


async def test_a_listener_of_a_repetition_is_told_the_end(node: Node, folder: Path) -> None:
    """The items went to the first caller's inbox; whoever listens for those of the repetition must not wait for ever."""
    await node.request("counts", payload(folder), headers={KEY: "listened"})
    inbox = node.client.new_inbox()
    subscription = await node.client.subscribe(inbox)
    answer = await node.request("counts", payload(folder), headers={KEY: "listened", "Faas-Chunk-To": inbox})
    last = await subscription.next_msg(timeout=5)
    await subscription.unsubscribe()

    assert head(last)["Faas-Eos"] == "true"
    assert head(last)["Faas-Outcome"] == "succeeded"
    assert end(answer) == ("succeeded", "")


# ---------------------------------------------------------------- over HTTP


async def test_over_http_a_repetition_gets_the_same_response(node: Node, folder: Path) -> None:
    """With quotes, as the draft writes it, and without, as nearly everybody does."""
    async with http(node) as door:
        first = await door.post("/invoke/default/counts", payload(folder), Idempotency_Key='"http-1"', Content_Type="application/json")
        second = await door.post("/invoke/default/counts", payload(folder), Idempotency_Key="http-1", Content_Type="application/json")

    assert first[0] == second[0] == 200
    assert first[2] == second[2]
    assert first[1]["faas-invocation"] == second[1]["faas-invocation"]
    assert runs(folder) == 1


async def test_over_http_the_same_key_is_one_invocation_however_it_is_waited_for(node: Node, folder: Path) -> None:
    """Handed in first and waited for later, on the bus or here: the key says what it is."""
    async with http(node) as door:
        handed_in = await door.post("/invoke/default/waits", payload(folder), Idempotency_Key="ways", Prefer="respond-async")
        waited = await door.post("/invoke/default/waits", payload(folder), Idempotency_Key="ways", Prefer="wait=0")
        (folder.parent / "go").touch()
        at_once = await door.post("/invoke/default/waits", payload(folder), Idempotency_Key="ways")
    on_the_bus = await node.request("waits", payload(folder), headers={KEY: "ways"})

    assert [answer[0] for answer in (handed_in, waited, at_once)] == [202, 202, 200]
    invocations = {answer[1]["faas-invocation"] for answer in (handed_in, waited, at_once)} | {head(on_the_bus)["Faas-Invocation"]}
    assert len(invocations) == 1
    assert runs(folder) == 1


@pytest.mark.parametrize("prefer", ["", "respond-async", "wait=5"])
async def test_over_http_another_payload_with_a_used_key_is_422(node: Node, folder: Path, prefer: str) -> None:
    """As the draft has it, whichever way it is to be answered."""
    preferred = {"Prefer": prefer} if prefer else {}
    async with http(node) as door:
        await door.post("/invoke/default/counts", payload(folder), Idempotency_Key=f"used-{prefer}")
        other = await door.post("/invoke/default/counts", payload(folder, n=2), Idempotency_Key=f"used-{prefer}", **preferred)

    assert problem(other) == (422, "idempotency_key_reused")
    assert runs(folder) == 1


async def test_over_http_a_client_that_goes_away_cancels_nothing_that_it_may_ask_for_again(node: Node, folder: Path) -> None:
    """Else the first outcome would be that it was cancelled, for a day."""
    async with http(node) as door:
        gone = asyncio.create_task(door.post("/invoke/default/waits", payload(folder), Idempotency_Key="gone"))
        await began(folder)
        gone.cancel()
        await asyncio.wait([gone])
        (folder.parent / "go").touch()
        answer = await door.post("/invoke/default/waits", payload(folder), Idempotency_Key="gone")

    assert (answer[0], json.loads(answer[2])) == (200, "went")
    assert runs(folder) == 1


@pytest.mark.parametrize("key", ['"', '""', "x" * 256, '"open', "ü"])
async def test_over_http_a_key_out_of_bounds_is_400(node: Node, key: str) -> None:
    """The same bounds as on the bus."""
    async with http(node) as door:
        answer = await door.post("/invoke/default/counts", b"{}", Idempotency_Key=key)

    assert problem(answer) == (400, "event_invalid")


async def test_over_http_a_key_for_a_function_that_is_not_there_claims_nothing(node: Node) -> None:
    """A claim is kept for a day: made-up names would push real outcomes out of FAAS_OUTCOMES."""
    async with http(node) as door:
        answers = [problem(await door.post("/invoke/default/nobody", b"1", Idempotency_Key=f"k{n}")) for n in range(3)]

    assert answers == [(404, "unknown_function")] * 3
    assert await node.count("FAAS_OUTCOMES", "faas.attempt.default.nobody.*") == 0


async def test_over_http_a_refused_repetition_leaves_no_payload_behind(node: Node) -> None:
    """An object of a stored event is kept for days: whoever sends another one with a used key could fill the bucket."""
    async with http(node) as door:
        first = await door.post("/invoke/default/large", b"x" * 2_000_000, Idempotency_Key="leaves")
        before = await node.count("OBJ_FAAS_PAYLOADS", "$O.FAAS_PAYLOADS.C.>")
        other = await door.post("/invoke/default/large", b"y" * 2_000_000, Idempotency_Key="leaves")
        again = await door.post("/invoke/default/large", b"x" * 2_000_000, Idempotency_Key="leaves")
    after = await node.count("OBJ_FAAS_PAYLOADS", "$O.FAAS_PAYLOADS.C.>")

    assert problem(other) == (422, "idempotency_key_reused")
    assert (first[0], first[2]) == (again[0], again[2])
    assert len(first[2]) == 2_000_026
    assert after <= before  # the payload of the first may have gone in the meantime


async def test_over_http_a_repetition_can_be_followed(node: Node, folder: Path) -> None:
    """A stream that broke off is asked for again with the same key."""
    async with http(node) as door:
        await door.post("/invoke/default/counts", payload(folder), Idempotency_Key="followed")
        status, headers, body = await door.post(
            "/invoke/default/counts", payload(folder), Idempotency_Key="followed", Accept="text/event-stream"
        )

    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert b'"outcome":"succeeded"' in body
    assert runs(folder) == 1


# ---------------------------------------------------------------- the client and the command line


async def test_the_python_client_repeats_a_large_body_with_a_large_result(node: Node) -> None:
    """Neither may be gone from the object store when it is asked for the second time."""
    async with faas.connect(node.info["nats"]) as client:
        first = await client.invoke("large", b"x" * 3_000_000, idempotency_key="large-1")
        second = await client.invoke("large", b"x" * 3_000_000, idempotency_key="large-1")
        with pytest.raises(faas.InvocationFailed, match="another payload"):
            await client.invoke("large", b"y" * 3_000_000, idempotency_key="large-1")

    assert len(first) == 3_000_026
    assert first == second


async def test_the_python_client_refuses_a_key_that_no_node_would_take(node: Node) -> None:
    """Before anything is sent, with a sentence."""
    async with faas.connect(node.info["nats"]) as client:
        with pytest.raises(faas.FaasError, match="1 to 255 printable ASCII"):
            await client.invoke("counts", {}, idempotency_key=" ")
        with pytest.raises(faas.FaasError, match="two idempotency keys"):
            await client.invoke("counts", {}, idempotency_key="a", headers={"faas-idempotency-key": "b"})


async def test_the_command_line_repeats_a_call_by_its_key(node: Node, folder: Path) -> None:
    """The way of a shell script that is started again."""
    arguments = ["invoke", "counts", payload(folder).decode(), "--idempotency-key", "shell", "--nats", node.info["nats"]]
    first = await command(*arguments)
    second = await command(*arguments)

    assert first[0] == second[0] == 0, first[2]
    assert first[1] == second[1]
    assert runs(folder) == 1


async def test_the_command_line_hands_in_once_what_has_a_key(node: Node, folder: Path) -> None:
    """Of a stored event the key is its id."""
    arguments = ["invoke", "counts", payload(folder).decode(), "--async", "--idempotency-key", "handed", "--nats", node.info["nats"]]
    first = await command(*arguments)
    second = await command(*arguments)
    invocation = first[1].strip()
    await node.records("counts", invocation)

    assert first[0] == second[0] == 0, first[2]
    assert second[1].strip() == invocation
    assert runs(folder) == 1


@pytest.mark.parametrize("more", [["--stream"], ["--async", "--id", "x"]])
async def test_the_command_line_refuses_a_key_beside_what_excludes_it(node: Node, more: list[str]) -> None:
    """Rather than taking one of the two and leaving out the other."""
    code, _, said = await command("invoke", "counts", "{}", "--idempotency-key", "k", *more, "--nats", node.info["nats"])

    assert code == 2
    assert "--idempotency-key goes with neither" in said
