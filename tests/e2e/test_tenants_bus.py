"""Two tenants on one bus: each reaches for what is the other's with its own key, and gets nothing; and what each key is enough for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import nats.errors
import pytest
from nats.aio.msg import Msg
from node import command, end, head
from rivals import QUIET, Two, refused, two_tenants

import faas
import faas.errors
from faas.identity import invocation_id, keyed_invocation_id

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    async with two_tenants(tmp_path_factory.mktemp("tenants")) as found:
        yield found


# ---------------------------------------------------------------- over the bus


@pytest.mark.parametrize(
    "subject",
    ["faas.invoke.rival.prints", "faas.submit.rival.prints", "rival.in.x", "faas.outcome.rival.prints.x", "faas.usage.rival.prints",
     "faas.usage.acme.reaches", "faas.log.rival.prints.x", "faas.cancel.rival.prints.x", "faas.due.acme.reaches", "faas.hook.rival.h",
     "$JS.API.STREAM.INFO.FAAS_EVENTS", "$JS.API.STREAM.MSG.GET.FAAS_OUTCOMES", "$KV.FAAS_REGISTRY.rival.prints", "faas.node.any.holds",
     "$JS.API.DIRECT.GET.FAAS_OUTCOMES", "$JS.API.DIRECT.GET.FAAS_OUTCOMES.faas.outcome.rival.prints.x", "$SYS.REQ.USER.INFO"],
)  # fmt: skip
async def test_a_tenants_key_publishes_nothing_of_another(two: Two, subject: str) -> None:
    """Function, subject, outcome, usage, log, cancel and webhook of the rival; the bus's own API; and usage of its own, which only nodes write."""
    heard = len(two.heard)
    async with two.server.user("tenant-acme") as (client, said):
        assert await refused(client, said, lambda: client.publish(subject, b"forged"))

    assert [m for m in two.heard[heard:] if m.data == b"forged"] == []


@pytest.mark.parametrize(
    "subject",
    [">", "faas.>", "faas.outcome.>", "faas.outcome.rival.>", "faas.outcome.*.prints.>", "faas.log.rival.>", "faas.usage.rival.>",
     "faas.dead.rival.>", "faas.chunk.rival.>", "rival.>", "rival.in.x", "faas.invoke.rival.>", "faas.invoke.acme.>", "_INBOX.>", "_INBOX_faas_node.>",
     "$JS.>", "$KV.>", "$SYS.>"],
)  # fmt: skip
async def test_a_tenants_key_hears_nothing_of_another(two: Two, subject: str) -> None:
    """Outcome, log, usage and dead letters of the rival, and every inbox but its own."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    async with two.server.user("tenant-acme") as (client, said):
        assert await refused(client, said, lambda: client.subscribe(subject, cb=hear))
        await two.rivals()
        await client.flush()

    assert heard == []


async def test_a_tenants_key_reads_no_other_outcome_by_a_body(two: Two) -> None:
    """A direct get takes a question in its body too: it may not outweigh the subject that the permission is for."""
    await two.rivals()
    async with two.server.user("tenant-acme") as (client, said):
        for question in (
            b'{"seq":1}',
            b'{"last_by_subj":"faas.outcome.rival.>"}',
            b'{"batch":10,"seq":1}',
            b'{"multi_last":["faas.outcome.rival.>"]}',
        ):
            try:
                got = await client.request("$JS.API.DIRECT.GET.FAAS_OUTCOMES.faas.outcome.acme.publishes.x", question, timeout=2)
            except nats.errors.TimeoutError:
                continue
            assert "faas.outcome.rival" not in head(got).get("Nats-Subject", "")
            assert QUIET[:3].encode() not in got.data
        assert said == []


async def test_the_acknowledgement_of_an_event_reaches_no_part_of_the_bus_that_acts(two: Two) -> None:
    """A stream answers whatever reply subject a publish names; JetStream's own requests are deaf to that."""
    stream = two.node.client.jetstream()
    await two.rivals()
    before = (await stream.stream_info("FAAS_OUTCOMES")).state.messages
    async with two.server.user("tenant-acme") as (client, _):
        for verb in ("PURGE", "DELETE"):
            await client.publish("faas.submit.acme.publishes", b"acme.ok", reply=f"$JS.API.STREAM.{verb}.FAAS_OUTCOMES")
        await client.request("faas.submit.acme.publishes", b"acme.ok", timeout=8)

    assert (await stream.stream_info("FAAS_OUTCOMES")).state.messages >= before


async def test_a_request_of_a_tenant_borrows_no_right_of_the_node_by_its_reply_subject(two: Two) -> None:
    """The server checks what is published, and not where an answer is asked for: what answers has to."""
    heard = len(two.heard)
    async with two.server.user("tenant-acme") as (client, said):
        for reply in ("faas.usage.acme.publishes", "rival.in.x", "$JS.API.STREAM.PURGE.FAAS_EVENTS", "$KV.FAAS_REGISTRY.acme.x"):
            await client.publish("faas.invoke.acme.publishes", b"acme.ok", reply=reply)
        answer = await client.request("faas.invoke.acme.publishes", b"acme.ok", timeout=8)
        assert said == []
    wrong = [m.subject for m in two.heard[heard:] if m.subject.startswith(("rival.", "$JS.API.STREAM.PURGE", "$KV.FAAS_REGISTRY"))]

    assert end(answer) == ("succeeded", "")
    assert wrong == []


async def test_no_answer_of_the_server_itself_goes_where_a_tenant_may_not_publish(two: Two) -> None:
    """JetStream answers with rights of its own wherever a reply subject says: into the registry, where it would be a version that nobody deployed."""
    beyond = ("rival.in.x", f"faas.outcome.rival.prints.{'a' * 26}", "faas.due.rival.prints", "$KV.FAAS_REGISTRY.rival.prints")
    event, head_of_it = b"acme.ok", {"ce-specversion": "1.0", "ce-id": "own", "ce-source": "/acme", "ce-type": "t"}
    stored = f"faas.outcome.acme.publishes.{invocation_id('acme', 'publishes', source='/acme', event_id='own')}"
    heard = len(two.heard)
    async with two.server.user("tenant-acme") as (client, said):
        outcome: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        async def ended(message: Msg) -> None:
            outcome.set_result(message)

        await client.subscribe(stored, cb=ended)
        await client.request("faas.submit.acme.publishes", event, headers=head_of_it, timeout=8)
        await asyncio.wait_for(outcome, 20)
        for reply in beyond:
            await client.publish("faas.submit.acme.publishes", event, headers=head_of_it, reply=reply)
            await client.publish(f"$JS.API.DIRECT.GET.FAAS_OUTCOMES.{stored}", reply=reply)
        acknowledged = await client.request("faas.submit.acme.publishes", event, headers=head_of_it, timeout=8)
        assert said == []
    await two.node.client.flush()

    assert b"FAAS_EVENTS" in acknowledged.data
    assert [message.subject for message in two.heard[heard:] if message.subject in beyond] == []


@pytest.mark.parametrize(
    ("headers", "message_id"),
    [
        ({"Idempotency-Key": "order-17"}, f"key.{keyed_invocation_id('rival', 'prints', 'order-17')}"),
        (
            {"ce-id": "order-18", "ce-source": "/shop", "ce-type": "paid", "ce-specversion": "1.0"},
            "faas.submit.rival.prints /shop order-18",
        ),
    ],
)
async def test_an_event_is_not_kept_out_by_a_tenant_that_used_its_message_id_first(
    two: Two, headers: dict[str, str], message_id: str
) -> None:
    """A stream knows an id once, whoever used it: the event would be answered 202 and lost."""
    async with two.server.user("tenant-acme") as (client, _):
        await client.request("faas.submit.acme.publishes", b"acme.ok", headers={"Nats-Msg-Id": message_id}, timeout=8)
    first, again = [
        await two.send("POST", "/invoke/rival/prints", "rival", b"1", **headers, Prefer="wait=20", Content_Type="application/json")
        for _ in range(2)
    ]

    assert first == again == (200, json.dumps(QUIET[:3]).encode())


@pytest.mark.parametrize("header", ["Faas-Reply-To", "Faas-Chunk-To"])
async def test_an_event_has_a_node_say_nothing_to_itself(two: Two, header: str) -> None:
    """A node stores an outcome like any publisher, with its inbox as reply: whoever hears that knows where it waits for the bus's own answers."""
    learned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with two.server.user("tenant-acme") as (client, _):

        async def stored(message: Msg) -> None:
            if not learned.done():
                learned.set_result(message.reply)

        await client.subscribe("faas.outcome.acme.publishes.*", cb=stored)
        await client.request("faas.submit.acme.publishes", b"acme.ok", timeout=8)
        inbox = await asyncio.wait_for(learned, 20)
        heard = len(two.heard)
        answer = await client.request("faas.invoke.acme.publishes", b"acme.ok", headers={header: inbox}, timeout=8)
    await two.node.client.flush()

    assert inbox.startswith("_INBOX_faas_node.")
    assert end(answer) == ("rejected", "event_invalid")
    assert [message for message in two.heard[heard:] if message.subject == inbox and message.headers] == []  # the bus's own answer has none


# ---------------------------------------------------------------- who may do all that


@pytest.mark.parametrize(
    "verb",
    [
        ("functions",),
        ("functions", "publishes"),
        ("nodes",),
        ("runs",),
        ("schedules",),
        ("invoke", "publishes", "acme.ok", "--tenant", "acme"),
        ("invoke", "publishes", "acme.ok", "--tenant", "acme", "--async"),
        ("publish", "acme.in.x", "acme.ok"),
        ("logs", "prints", "--tenant", "rival"),
        ("dlq", "list"),
        ("rollback", "prints", "--tenant", "rival"),
        ("functions", "remove", "waits", "--tenant", "rival"),
    ],
    ids=" ".join,
)
async def test_an_operators_key_is_enough_for_every_verb(two: Two, verb: tuple[str, ...]) -> None:
    """Else whoever runs the bus would go on with a user that may do everything."""
    environ = {"FAAS_NKEY": str(two.server.seed("operator")), "FAAS_NATS": f"nats://127.0.0.1:{two.server.port}"}
    code, out, err = await command(*verb, environ=environ, wait_s=30)

    assert code == 0 or "has no version before this one" in err, (out, err)
    assert "violation" not in err.lower()


async def test_a_tenants_key_is_enough_for_its_own_programs(two: Two) -> None:
    """Calls, durable calls with their outcomes, and streams; of another tenant not even whether there is such a function."""
    url = f"nats://127.0.0.1:{two.server.port}"
    async with faas.connect(url, nkey=two.server.seed("tenant-acme")) as client:
        assert await client.invoke("publishes", "acme.ok", tenant="acme", timeout="20s") == 1
        ticket = await client.submit("publishes", "acme.ok", tenant="acme")
        assert (await client.outcome(ticket, wait="20s")).result == 1
        assert [item async for item in client.stream("publishes", "acme.ok", tenant="acme", timeout="20s")] == [1]
        with pytest.raises((faas.errors.FaasError, TimeoutError)):
            await client.invoke("prints", 1, tenant="rival", timeout="1s")


async def test_without_a_key_the_bus_lets_nobody_in(two: Two) -> None:
    """And says so in one sentence."""
    code, _, err = await command("functions", environ={"FAAS_NATS": f"nats://127.0.0.1:{two.server.port}"})

    assert code == 1
    assert "Authorization Violation" in err
    assert "show it who you are: --nkey FILE or FAAS_NKEY" in err
