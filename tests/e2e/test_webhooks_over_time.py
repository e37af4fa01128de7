"""Webhooks while things change: the bus away or full, secrets rotated, functions that come, go and contradict each other, tenants."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from deliveries import GITHUB_PULL_REQUEST, by_github
from deploying import faas, listed, served
from hooking import GITHUB, OPEN, hook, ids, post
from node import Node, end, head, running, write_function

LISTED = hook("gh", "github", "gh_secret")
SECRET = {"gh_secret": GITHUB}


@asynccontextmanager
async def hooked(root: Path, functions: dict[str, tuple[str, str]], config: str = "") -> AsyncIterator[tuple[Node, aiohttp.ClientSession]]:
    """A node with these functions, (code, spec) by name, and one secret; and a client of its HTTP."""
    secrets = root / "secrets"
    secrets.mkdir(mode=0o700)
    write_secret(secrets / "gh_secret", GITHUB)
    for name, (code, spec) in functions.items():
        write_function(root / "functions", name, code, spec)
    (root / "faas.toml").write_text(f'[secrets]\nfolder = "{secrets}"\n{config}')
    options = ("--config", str(root / "faas.toml"))
    async with running(root / "functions", root / "state", *options) as node, aiohttp.ClientSession(node.info["http"]) as http:
        await node.watch()
        yield node, http


def write_secret(file: Path, value: str) -> None:
    """Whole or not at all, as whoever rotates one does."""
    unfinished = file.with_name(f".{file.name}.new")
    unfinished.touch(mode=0o600)
    unfinished.write_text(value)
    unfinished.rename(file)


def server_of(node: Node) -> int:
    """The process of its embedded nats-server."""
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if "nats-server" in Path(f"/proc/{pid}/comm").read_text()]
    return pid


@pytest.mark.timeout(30)
async def test_a_delivery_that_the_bus_did_not_confirm_is_not_answered_2xx_and_runs_once_all_the_same(tmp_path: Path) -> None:
    """Its sender tries again, whether or not the bus had it: 503 with Retry-After, then 202, then one execution."""
    async with hooked(tmp_path, {"gh": (OPEN, LISTED)}) as (node, http):
        delivery = by_github(GITHUB, GITHUB_PULL_REQUEST, "while-away")
        server = server_of(node)
        os.kill(server, signal.SIGSTOP)
        try:
            status, document, headers = await post(http, "gh", GITHUB_PULL_REQUEST, delivery)
        finally:
            os.kill(server, signal.SIGCONT)
        async with asyncio.timeout(15):
            while (again := await post(http, "gh", GITHUB_PULL_REQUEST, delivery))[0] == 503:
                pass
        await node.outcome("while-away")

        assert (status, document["code"]) == (503, "bus_unavailable")
        assert int(headers["Retry-After"]) > 0
        assert len(await node.records("gh", ids(again)[0])) == 1
        assert len(node.outcomes["while-away"]) == 1


@pytest.mark.timeout(30)
async def test_a_full_stream_refuses_deliveries_and_loses_none_that_it_took(tmp_path: Path) -> None:
    """A 202 is a promise. What cannot be promised is refused with Retry-After, and taken once there is room."""
    gate = tmp_path / "gate"
    waits = f"import os, time\ndef handle(event: bytes):\n    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.05)\n    return len(event)\n"
    spec = hook("open", "none") + '[scale]\nmax_workers = 1\n[limits]\ntimeout = "60s"\n'
    async with hooked(tmp_path, {"waits": (waits, spec)}, '[bus]\nmax_bytes = "1MiB"\n') as (node, http):
        answers = [
            await post(
                http, "open", io.BytesIO(b"x" * 200_000), {"content-type": "application/octet-stream", "x-delivery-id": f"no-{number}"}
            )
            for number in range(10)
        ]
        taken = [answer for answer in answers if answer[0] == 202]
        refused = [answer for answer in answers if answer[0] != 202]
        gate.touch()
        for answer in taken:
            assert end(await node.outcome(str(answer[1]["event"]))) == ("succeeded", "")

    assert taken
    assert {(status, document["code"], "Retry-After" in headers) for status, document, headers in refused} == {(503, "store_refused", True)}


async def test_a_secret_is_rotated_without_a_restart(tmp_path: Path) -> None:
    """New and old hold together while the old one lies beside it; then the old one is nothing."""
    async with hooked(tmp_path, {"gh": (OPEN, LISTED)}) as (_, http):

        async def answered(secret: str, id: str) -> int:
            return (await post(http, "gh", GITHUB_PULL_REQUEST, by_github(secret, GITHUB_PULL_REQUEST, id)))[0]

        first = [await answered(GITHUB, "a"), await answered("a new one, which is as long", "b")]
        write_secret(tmp_path / "secrets" / "gh_secret.previous", GITHUB)
        write_secret(tmp_path / "secrets" / "gh_secret", "a new one, which is as long")
        both = [await answered(GITHUB, "c"), await answered("a new one, which is as long", "d")]
        (tmp_path / "secrets" / "gh_secret.previous").unlink()
        last = [await answered(GITHUB, "e"), await answered("a new one, which is as long", "f")]
        (tmp_path / "secrets" / "gh_secret").unlink()
        gone = await answered("a new one, which is as long", "g")

    assert (first, both, last, gone) == ([202, 401], [202, 202], [401, 202], 503)


@pytest.mark.timeout(30)
async def test_a_function_that_would_open_a_webhook_of_others_is_invalid_until_it_agrees(tmp_path: Path) -> None:
    """One subject: had the later word counted, an unsigned request would set off the function that asked for signatures."""
    async with hooked(tmp_path, {"strict": (OPEN, LISTED)}) as (node, http):
        write_function(tmp_path / "more", "loose", OPEN, hook("gh", "none"))
        await faas(node, "deploy", str(tmp_path / "more"))
        async with asyncio.timeout(8):
            while not (report := await listed(node, "loose")):
                pass
        unsigned = await post(http, "gh", b"{}", {"content-type": "application/json"})

        assert report["state"] == "invalid"
        assert 'the webhook gh is the function strict\'s too, which has verify = "github"' in report["error"]
        assert unsigned[0] == 401

        write_function(tmp_path / "more", "loose", OPEN, LISTED)
        (deployed,) = await faas(node, "deploy", str(tmp_path / "more"))
        await served(node, "loose", deployed["version"])
        answer = await post(http, "gh", GITHUB_PULL_REQUEST, by_github(GITHUB, GITHUB_PULL_REQUEST, "agreed"))

        assert len(ids(answer)) == 2


@pytest.mark.timeout(30)
async def test_a_webhook_comes_with_its_function_and_goes_with_it(tmp_path: Path) -> None:
    """Without a restart; what was accepted before runs."""
    async with hooked(tmp_path, {"stays": (OPEN, hook("other", "none"))}) as (node, http):
        delivery = by_github(GITHUB, GITHUB_PULL_REQUEST, "came")
        before = await post(http, "gh", GITHUB_PULL_REQUEST, delivery)
        write_function(tmp_path / "more", "gh", OPEN, LISTED)
        (deployed,) = await faas(node, "deploy", str(tmp_path / "more"))
        await served(node, "gh", deployed["version"])
        there = await post(http, "gh", GITHUB_PULL_REQUEST, delivery)
        await node.outcome("came")
        await faas(node, "functions", "remove", "gh")
        async with asyncio.timeout(8):
            while await listed(node, "gh"):
                pass
        after = await post(http, "gh", GITHUB_PULL_REQUEST, delivery)

    assert (before[0], there[0], after[0]) == (404, 202, 404)


async def test_tenants_have_webhooks_of_one_name_each_with_its_own_secret(tmp_path: Path) -> None:
    """With tenants a webhook needs no bearer token, and its signature is good for its tenant alone."""
    tenants = "".join(
        f'[[tenant]]\nname = "{name}"\n[[tenant.token]]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        for name in ("acme", "bolt")
    )
    (tmp_path / "secrets").mkdir(mode=0o700)
    for name in ("acme", "bolt"):
        (tmp_path / "secrets" / name).mkdir(mode=0o700)
        write_secret(tmp_path / "secrets" / name / "gh_secret", f"the own secret of {name}")
    (tmp_path / "secrets" / "gh_secret").touch(mode=0o600)
    for name in ("acme", "bolt"):
        write_function(tmp_path / "functions", f"of-{name}", OPEN, f'tenant = "{name}"\n{LISTED}')
    (tmp_path / "faas.toml").write_text(f'[secrets]\nfolder = "{tmp_path / "secrets"}"\n{tenants}')
    async with (
        running(tmp_path / "functions", tmp_path / "state", "--config", str(tmp_path / "faas.toml")) as node,
        aiohttp.ClientSession(node.info["http"]) as http,
    ):
        await node.watch()

        async def sent(tenant: str, secret: str, **more: str) -> int:
            headers = {**by_github(secret, GITHUB_PULL_REQUEST, f"{tenant}-{secret[-4:]}"), **more}
            async with http.post(f"/hooks/{tenant}/gh", data=GITHUB_PULL_REQUEST, headers=headers) as answer:
                return answer.status

        own = await sent("acme", "the own secret of acme")
        others = await sent("bolt", "the own secret of acme")
        tokened = await sent("bolt", "the own secret of acme", authorization="Bearer bolt")
        outcome = await node.outcome("acme-acme")

    assert (own, others, tokened) == (202, 401, 401)
    assert head(outcome)["Faas-Tenant"] == "acme"


NASTY = (
    "a.b",
    "*",
    ">",
    "a%0d%0aNats-Msg-Id:x",
    "faas.outcome.default.x",
    "$JS.API.STREAM.DELETE.FAAS_EVENTS",
    "../../etc/passwd",
    "`id`",
    "$(id)",
    "a:b:c",
    '{"x":1}',
    "~" * 255,
)


async def test_an_id_is_only_ever_an_id(tmp_path: Path) -> None:
    """It is the sender's text, in a header of the bus: no wildcard, path, command or line in it is one."""
    async with hooked(tmp_path, {"open": (OPEN, hook("open", "none"))}) as (node, http):
        for id in NASTY:
            answer = await post(http, "open", b"1", {"content-type": "application/json", "x-delivery-id": id})
            again = await post(http, "open", b"1", {"content-type": "application/json", "x-delivery-id": id})

            assert answer[1] == again[1]
            assert answer[1]["event"] == id
        async with asyncio.timeout(8), node.arrived:
            await node.arrived.wait_for(lambda: len(node.outcomes) == len(NASTY))
        stored = await node.stored("FAAS_EVENTS", "faas.hook.default.open")

        assert len(stored) == len(NASTY)
        assert {message.subject for message in stored} == {"faas.hook.default.open"}
        assert json.loads(stored[0].data) == 1


async def test_nobody_keeps_a_delivery_out_by_using_its_id_before_it_comes(tmp_path: Path) -> None:
    """A stream knows an id once, whoever used it: a tenant that guesses another's must not have the delivery answered and dropped."""
    async with hooked(tmp_path, {"open": (OPEN, hook("open", "none") + '[[trigger]]\nsubject = "mine.x"\n')}) as (node, http):
        await node.client.jetstream().publish("mine.x", b"0", headers={"Nats-Msg-Id": "wh:default:open:7"})
        delivery = {"content-type": "application/json", "x-delivery-id": "7"}
        answers = [await post(http, "open", b"1", delivery) for _ in range(3)]
        outcome = await node.outcome("7")
        behind = await post(http, "open", b"2", {**delivery, "x-delivery-id": "8"})
        await node.outcome("8")

        assert len({tuple(ids(answer)) for answer in answers}) == 1
        assert (json.loads(outcome.data), ids(behind) != ids(answers[0])) == (1, True)
        assert len(node.outcomes["7"]) == 1
        assert "event.id_taken" in (node.state / "node.log").read_text()
