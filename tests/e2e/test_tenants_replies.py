"""What a tenant asks the bus itself, with the answer sent elsewhere: a server checks where its users publish, and not where they want an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from node import Node, end, head, running, write_function
from permitted import Permitted, permitted

from faas.config import TenantConfig

ECHO = "def handle(event):\n    return event\n"
ELSEWHERE = [
    "faas.submit.rival.echo", "faas.invoke.rival.echo", "faas.cancel.rival.echo.x", "faas.hook.rival.h", "faas.due.rival.echo", "rival.in.x",
    "faas.outcome.rival.echo.x", "faas.usage.rival.echo", "faas.usage.acme.echo", "$JS.API.STREAM.PURGE.FAAS_OUTCOMES",
    "$JS.API.CONSUMER.LIST.FAAS_EVENTS", "$KV.FAAS_REGISTRY.rival.echo",
]  # fmt: skip


@dataclass
class Bus:
    """A node with a function of each tenant, its server, and all that the runtime's side of the bus hears."""

    node: Node
    server: Permitted
    heard: list[Msg] = field(default_factory=list)


@pytest.fixture(scope="module")
async def bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bus]:
    root: Path = tmp_path_factory.mktemp("replies")
    tenants = [TenantConfig(name="default", subscribe=(), publish=())]
    tenants += [TenantConfig(name=name, subscribe=(f"{name}.>",), publish=(f"{name}.>",)) for name in ("acme", "rival")]
    for name in ("acme", "rival"):
        spec = f'name = "echo{name}"\ntenant = "{name}"\n[[trigger]]\nsubject = "{name}.in.*"\n'
        write_function(root / "functions", f"echo{name}", ECHO, spec)
    async with permitted(root / "bus", tenants) as server:
        options = ("--nats", server.url, "--config", str(server.toml))
        async with running(root / "functions", root / "state", *options, environ={"FAAS_NKEY": str(server.seed("node"))}) as node:
            found = Bus(node, server)

            async def hear(message: Msg) -> None:
                found.heard.append(message)

            for subject in ("faas.*.rival.>", "faas.usage.>", "rival.>", "acme.>", "$KV.>", "$JS.API.>"):
                await node.client.subscribe(subject, cb=hear)
            await node.client.flush()
            yield found


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("asked", ["faas.submit.acme.echoacme", "acme.in.x", "direct"])
async def test_what_the_bus_answers_a_tenant_goes_nowhere_else(bus: Bus, asked: str, elsewhere: str) -> None:
    """The answer of a stream or of a direct get comes from the server itself, which may publish anywhere: it ran a rival's function, and emptied streams."""
    async with bus.server.user("tenant-acme") as (client, said):
        outcomes = await client.subscribe("faas.outcome.acme.>")
        await client.flush()
        stored = await client.request("faas.submit.acme.echoacme", b'{"seq": 1000000}', timeout=8)
        assert b"FAAS_EVENTS" in stored.data
        ended = await outcomes.next_msg(timeout=8)
        before, begun = await bus.node.count("FAAS_OUTCOMES", "faas.outcome.>"), len(bus.heard)

        await client.publish(f"$JS.API.DIRECT.GET.FAAS_OUTCOMES.{ended.subject}" if asked == "direct" else asked, b"", reply=elsewhere)
        again = await client.request(f"$JS.API.DIRECT.GET.FAAS_OUTCOMES.{ended.subject}", timeout=8)  # answered behind the one before
        assert said == []
    reached = [m.subject for m in bus.heard[begun:] if m.subject == elsewhere]

    assert head(again)["Faas-Outcome"] == "succeeded"
    assert reached == []
    assert await bus.node.count("FAAS_OUTCOMES", "faas.outcome.>") >= before


async def test_a_tenant_hears_what_it_publishes_once(bus: Bus) -> None:
    """What is in both of its lists goes through the runtime's side and comes back: twice, it would be two events for whoever listens."""
    async with bus.server.user("tenant-acme") as (client, said):
        heard = await client.subscribe("acme.>")
        await client.flush()
        stored = await client.request("acme.in.once", b"1", timeout=8)
        await client.publish("acme.fence", b"")
        subjects = [(await heard.next_msg(timeout=8)).subject for _ in range(2)]
        assert said == []

    assert json.loads(stored.data)["stream"] == "FAAS_EVENTS"
    assert subjects == ["acme.in.once", "acme.fence"]


async def test_a_call_of_a_tenant_is_answered_and_streamed(bus: Bus) -> None:
    """Request and reply, an answer where a header says, and no responders for what is not there, as within one account."""
    async with bus.server.user("tenant-acme") as (client, said):
        inbox = client.new_inbox()
        elsewhere = await client.subscribe(inbox)
        await client.flush()
        answer = await client.request("faas.invoke.acme.echoacme", b"[1]", timeout=8)
        await client.request("faas.submit.acme.echoacme", b"[2]", headers={"Faas-Reply-To": inbox}, timeout=8)
        replied = await elsewhere.next_msg(timeout=8)
        with pytest.raises(NoRespondersError):
            await client.request("faas.invoke.acme.none", b"1", timeout=8)
        assert said == []

    assert (end(answer), answer.data) == (("succeeded", ""), b"[1]")
    assert replied.data == b"[2]"


async def test_a_tenant_that_is_new_is_served_after_two_reloads(tmp_path: Path) -> None:
    """The server gives an account that is new what it imports at the second one; meanwhile everybody else's programs go on."""
    known = [TenantConfig(name="default", subscribe=(), publish=()), TenantConfig(name="acme", subscribe=(), publish=())]
    for tenant in ("acme", "late"):
        write_function(tmp_path / "functions", f"echo{tenant}", ECHO, f'tenant = "{tenant}"\n')
    async with permitted(tmp_path / "bus", known) as server, running(tmp_path / "functions", tmp_path / "state", "--nats", server.url):
        async with server.user("tenant-acme") as (acme, _):
            server.tenants = [*known, TenantConfig(name="late", subscribe=(), publish=())]
            server.write()
            await server.reload()
            await server.reload()
            kept = await acme.request("faas.invoke.acme.echoacme", b"1", timeout=8)
        async with server.user("tenant-late") as (late, _):
            new = await late.request("faas.invoke.late.echolate", b"1", timeout=8)

    assert (end(kept), end(new)) == (("succeeded", ""), ("succeeded", ""))
