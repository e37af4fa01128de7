"""Two tenants on one node and one bus, each with functions, tokens and a key; and whether the server refuses what one of them does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from nats.aio.client import Client
from nats.aio.msg import Msg
from node import SHORT_LEASE, Node, head, running, write_function
from permitted import Permitted, permitted

from faas.config import TenantConfig, TokenConfig
from faas.security.tokens import digest_of, new_token

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


@asynccontextmanager
async def two_tenants(root: Path) -> AsyncIterator[Two]:
    """Both on one node, whose bus knows them by their keys."""
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
