"""Two tenants on one node and one bus: each reaches for what is the other's, over HTTP, over the bus and from inside a function, and gets nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from node import SHORT_LEASE, Node, command, end, head, running, write_function
from permitted import Permitted, permitted

import faas
import faas.errors
from faas.config import TenantConfig, TokenConfig
from faas.identity import keyed_invocation_id
from faas.security.tokens import digest_of, new_token

pytestmark = pytest.mark.timeout(60)

QUIET = "the-rival's-own-secret-value"
REACHES = """
import sys
from faas.worker import wire

def handle(event: list, ctx):
    peer, refused = sys.stdout._log._send.__self__, 0
    for n, subject in enumerate(event):
        try:
            ctx.publish(subject, n)
        except ValueError:
            refused += 1
    for n, subject in enumerate(event):
        peer.send(wire.Emit(subject=subject, id=f"{ctx.invocation_id}.raw{n}", data=b"1", content_type="application/json"))
    return refused
"""
PUBLISHES = "def handle(event: str, ctx):\n    ctx.publish(event, 1)\n    return 1\n"
PRINTS = "def handle(event, ctx):\n    print('a line of the rival')\n    return ctx.secrets['quiet'][:3]\n"
WAITS = "import asyncio\nasync def handle(event):\n    await asyncio.sleep(60)\n"
STEALS = "def handle(event, ctx):\n    return ctx.secrets['quiet']\n"


@dataclass
class Two:
    """The node of both, and how each speaks to it."""

    node: Node
    server: Permitted
    http: aiohttp.ClientSession
    tokens: dict[str, str]
    heard: list[Msg] = field(default_factory=list)  # everything on the bus, as the server's own user hears it

    async def send(self, method: str, path: str, tenant: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()} | {"Authorization": f"Bearer {self.tokens[tenant]}"}
        async with self.http.request(method, path, data=body, headers=named) as answer:
            return answer.status, await answer.read()

    async def rivals(self) -> str:
        """An invocation of the rival's that has ended, its outcome stored."""
        status, body = await self.send("POST", "/invoke/rival/prints", "rival", b"1", Prefer="wait=40", Content_Type="application/json")
        assert status == 200, body
        stored = await self.node.stored("FAAS_OUTCOMES", "faas.outcome.rival.prints.*")
        return head(stored[-1])["Faas-Invocation"]


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    root: Path = tmp_path_factory.mktemp("tenants")
    tokens = {name: new_token(name) for name in ("acme", "rival")}
    tenants = [
        TenantConfig(name="default", subscribe=(), publish=()),
        *(
            TenantConfig(
                name=name,
                subscribe=(f"{name}.in.>",),
                publish=(f"{name}.>",),
                token=(TokenConfig(sha256=digest_of(token), scopes=("admin",)),),
            )
            for name, token in tokens.items()
        ),
    ]
    functions, secrets = root / "functions", root / "bus" / "secrets"
    write_function(functions, "reaches", REACHES, 'tenant = "acme"\n[retry]\nmax_attempts = 1\n')
    write_function(functions, "publishes", PUBLISHES, 'tenant = "acme"\n[[trigger]]\nsubject = "acme.in.x"\n')
    write_function(functions, "steals", STEALS, 'tenant = "acme"\nsecrets = ["quiet"]\n')
    write_function(functions, "beyond", PUBLISHES, 'tenant = "acme"\n[[trigger]]\nsubject = "rival.in.x"\n')
    write_function(functions, "sends", PUBLISHES, 'tenant = "acme"\n[output]\npublish = "rival.in.x"\n')
    write_function(functions, "strange", PUBLISHES, 'tenant = "nobody"\n')
    write_function(functions, "prints", PRINTS, 'tenant = "rival"\nsecrets = ["quiet"]\n[[trigger]]\nsubject = "rival.in.>"\n')
    write_function(functions, "waits", WAITS, 'tenant = "rival"\n[limits]\ntimeout = "60s"\n')
    write_function(
        functions,
        "hooked",
        PRINTS,
        'tenant = "rival"\nsecrets = ["quiet"]\n[[trigger]]\nwebhook = "h"\nverify = "token"\nsecret = "quiet"\n',
    )
    (secrets / "rival").mkdir(parents=True, mode=0o700)
    (secrets / "rival" / "quiet").write_text(QUIET)
    async with permitted(root / "bus", tenants) as server:
        server.toml.write_text(f'[secrets]\nfolder = "secrets"\n{server.toml.read_text()}')
        options = ("--nats", server.url, "--config", str(server.toml))
        async with (
            running(functions, root / "state", *options, environ=SHORT_LEASE) as node,
            aiohttp.ClientSession(node.info["http"]) as http,
        ):
            found = Two(node, server, http, tokens)

            async def hear(message: Msg) -> None:
                found.heard.append(message)

            await node.client.subscribe(">", cb=hear)
            await node.client.flush()
            yield found


async def refused(client: Client, said: list[str], act: Callable[[], Awaitable[object]]) -> bool:
    """Whether the server refuses what a client does; a PING behind it is answered once it has been looked at."""
    before = len(said)
    await act()
    await client.flush()  # nats-py writes its PING before what waits: what was done is out once this returns
    await client.flush()
    return any("permissions violation" in line.lower() for line in said[before:])


# ---------------------------------------------------------------- over HTTP


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/invoke/rival/prints"),
        ("GET", "/invocations/{}"),
        ("GET", "/invocations/{}/events"),
        ("DELETE", "/invocations/{}"),
        ("POST", "/invoke/acme/../rival/prints"),
        ("POST", "/invoke/acme%2F..%2Frival/prints"),
        ("POST", "/invoke/rival%00/prints"),
        ("POST", "/hooks/rival/h"),
        ("GET", "/functions/rival/prints"),
    ],
)
async def test_a_token_opens_no_other_tenants_door(two: Two, method: str, path: str) -> None:
    """Its function, its outcome, its log and its cancel; and none tells whether what was asked for exists."""
    status, body = await two.send(method, path.format(await two.rivals()), "acme", b"1")

    assert status in (401, 403, 404), body
    assert QUIET.encode() not in body


@pytest.mark.parametrize("path", ["/functions", "/openapi.json", "/usage", "/usage?tenant=rival"])
async def test_what_is_listed_for_a_token_names_nothing_of_another_tenant(two: Two, path: str) -> None:
    """Names of functions, their types and what they cost tell a rival what is worked on."""
    status, body = await two.send("GET", path, "acme")

    assert status in (200, 403, 404, 501), body
    assert b"prints" not in body
    assert b"hooked" not in body


async def test_a_rivals_invocation_runs_on_whoever_else_cancels_it(two: Two) -> None:
    """Cancel is the one question that changes something."""
    status, body = await two.send("POST", "/invoke/rival/waits", "rival", b"1", Prefer="respond-async")
    invocation = json.loads(body)["invocation"]
    denied, _ = await two.send("DELETE", f"/invocations/{invocation}", "acme")
    state, _ = await two.send("GET", f"/invocations/{invocation}", "rival")
    async with two.server.user("tenant-acme") as (client, said):
        over_bus = await refused(client, said, lambda: client.publish(f"faas.cancel.rival.waits.{invocation}"))
        own = await client.request(f"faas.cancel.acme.publishes.{invocation}", timeout=8)  # which it may send, whatever stands at the end
    ended, _ = await two.send("DELETE", f"/invocations/{invocation}", "rival")

    assert (status, denied, state, over_bus) == (202, 404, 200, True)
    assert json.loads(own.data)["known"] is False
    assert ended == 200


@pytest.mark.parametrize(
    "subject", ["rival.in.x", "faas.submit.rival.prints", "faas.usage.acme.reaches", "$JS.API.STREAM.PURGE.FAAS_EVENTS"]
)
@pytest.mark.parametrize("name", ["Faas-Reply-To", "Faas-Chunk-To"])
async def test_a_request_has_its_answer_sent_to_no_other_tenant(two: Two, subject: str, name: str) -> None:
    """The node would publish there for whoever asks, and it may more than its callers."""
    heard = len(two.heard)
    status, body = await two.send(
        "POST", "/invoke/acme/publishes", "acme", b'"acme.ok"', **{name: subject}, Content_Type="application/json"
    )

    assert status == 400, body
    assert [m.subject for m in two.heard[heard:] if m.subject == subject] == []


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


async def test_a_tenants_key_reads_its_own_outcome_and_no_other_by_a_body(two: Two) -> None:
    """A direct get takes a question in its body too: it may not outweigh the subject that the permission is for."""
    await two.rivals()
    async with two.server.user("tenant-acme") as (client, said):
        answer = await client.request("faas.invoke.acme.publishes", b"acme.ok", timeout=8)
        ticket = await client.request("faas.submit.acme.publishes", b"acme.ok", timeout=8)
        assert b"FAAS_EVENTS" in ticket.data
        for question in (b'{"seq":1}', b'{"last_by_subj":"faas.outcome.rival.>"}', b'{"next_by_subj":"faas.outcome.rival.>","seq":1}',
                         b'{"batch":10,"seq":1}', b'{"multi_last":["faas.outcome.rival.>"]}'):  # fmt: skip
            subject = "$JS.API.DIRECT.GET.FAAS_OUTCOMES.faas.outcome.acme.publishes.x"
            try:
                got = await client.request(subject, question, timeout=2)
            except nats.errors.TimeoutError:
                continue
            assert "faas.outcome.rival" not in head(got).get("Nats-Subject", "")
            assert QUIET[:3].encode() not in got.data
        assert said == []

    assert end(answer) == ("succeeded", "")


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


# ---------------------------------------------------------------- from inside a function


@pytest.mark.parametrize(
    "subject",
    ["faas.invoke.rival.prints", "faas.submit.rival.prints", "rival.in.x", "faas.outcome.rival.prints.x", "faas.usage.acme.reaches",
     "faas.log.rival.prints.x", "faas.cancel.rival.prints.x", "$JS.API.STREAM.PURGE.FAAS_EVENTS"],
)  # fmt: skip
async def test_a_function_that_reaches_for_another_tenant_has_failed(two: Two, subject: str) -> None:
    """Its author is told at once, and by name."""
    heard = len(two.heard)
    status, body = await two.send("POST", "/invoke/acme/publishes", "acme", json.dumps(subject).encode(), Content_Type="application/json")
    problem = json.loads(body)

    assert (status, problem["code"]) == (500, "error")
    assert subject in problem["detail"]
    assert [m for m in two.heard[heard:] if m.subject == subject and head(m).get("ce-source") == "/faas/acme/publishes"] == []


@pytest.mark.timeout(60)
async def test_no_subject_that_a_function_makes_up_gets_beyond_its_tenant(two: Two) -> None:
    """By `ctx.publish` and by frames of its own: fuzzed, since the node may publish to all of these."""
    dice = random.Random(27)
    parts = ["faas", "usage", "outcome", "acme", "rival", "in", "$JS", "API", "STREAM", "PURGE", "FAAS_EVENTS", "$KV", "$SYS", "_INBOX", "*", ">", "",
             "x", " ", "\t", "\r\nPUB rival.in.x 1\r\nA\r\n", "é", "a" * 300, "\0", "..", "faas.", "FAAS"]  # fmt: skip
    made = [".".join(dice.choices(parts, k=dice.randint(1, 6))) for _ in range(400)]
    made += [f"{own}{dice.choice(parts)}" for own in ("acme.", "acme", "acme.>", "rival.", "faas.usage.acme.") for _ in range(20)]
    heard = len(two.heard)
    for start in range(0, len(made), 100):
        body = json.dumps(made[start : start + 100]).encode()
        status, answer = await two.send("POST", "/invoke/acme/reaches", "acme", body, Content_Type="application/json")
        assert status == 500, answer
    async with asyncio.timeout(8):
        await two.node.client.flush()
    published = {m.subject for m in two.heard[heard:] if head(m).get("ce-source") == "/faas/acme/reaches" and "Faas-Outcome" not in head(m)}

    assert published
    assert all(subject.startswith("acme.") for subject in published)
    assert [m.subject for m in two.heard[heard:] if m.subject.startswith(("rival.", "$JS.API.STREAM.PURGE"))] == []


async def test_a_function_gets_no_secret_of_another_tenant(two: Two) -> None:
    """A name is looked up below its own tenant, wherever else it stands."""
    status, body = await two.send("POST", "/invoke/acme/steals", "acme", b"1", Content_Type="application/json")

    assert (status, json.loads(body)["code"]) == (500, "environment_failed")
    assert QUIET.encode() not in body


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("beyond", "beyond/function.toml: line 3: trigger[0].subject: rival.in.x: the tenant acme may subscribe to acme.in.> alone"),
        ("sends", "sends/function.toml: line 3: output.publish: rival.in.x: the tenant acme may publish to acme.> alone"),
        ("strange", "strange/function.toml: line 1: tenant: no tenant nobody; [[tenant]] of faas.toml lists acme, default, rival"),
    ],
)
async def test_a_declaration_that_reaches_beyond_its_tenant_is_listed_as_invalid(two: Two, name: str, said: str) -> None:
    """With its file and key, where its author looks."""
    code, out, _ = await command("functions", "--json", "--state", str(two.node.state))
    (report,) = [report for report in json.loads(out) if report["name"] == name]

    assert (code, report["state"]) == (0, "invalid")
    assert said in report["error"]


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
