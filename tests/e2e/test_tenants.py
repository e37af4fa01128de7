"""Two tenants on one node: each reaches for what is the other's over HTTP and from inside a function, and gets nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest
from node import command, head
from rivals import QUIET, Two, refused, two_tenants

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    async with two_tenants(tmp_path_factory.mktemp("tenants")) as found:
        yield found


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
