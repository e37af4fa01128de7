"""A nats-server that knows its users by `faas nats-config`, for tests whose node shall do what a node may and nothing else; and what it refused.

With FAAS_TEST_PERMISSIONS=1 every node that a test starts without a bus of its own runs on such a server, and a single refusal of what a node did
fails the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.client import Client

from faas.bus.server import find_server
from faas.config import TenantConfig
from faas.processes import die_with_parent
from faas.security.keyring import Keyring, user_names, users_of
from faas.seeds import inbox_of, read_seed
from faas.subjects import problem_with

ASKED = os.environ.get("FAAS_TEST_PERMISSIONS") == "1"
TESTER = "tester:tester"
"""The user of the tests themselves: no permission bounds it."""
TESTS = Path(__file__).resolve().parent
MADE_NAMES = ("OWN_limits", "OWN_interest", "OWN_workqueue", "OWN_True", "OWN_False")
SUITE_FOLDERS = (TESTS / "e2e", TESTS.parent / "functions")


@dataclass
class Permitted:
    """One such server. `url` is the tests' own; whoever shows a seed is that user instead."""

    folder: Path
    tenants: Sequence[TenantConfig]
    streams: tuple[str, ...] = ()
    process: asyncio.subprocess.Process | None = None
    port: int = -1

    @property
    def url(self) -> str:
        return f"nats://{TESTER}@127.0.0.1:{self.port}"

    @property
    def ring(self) -> Keyring:
        return Keyring(self.folder / "keys")

    def seed(self, user: str) -> Path:
        return self.folder / "keys" / f"{user}.nk"

    @property
    def toml(self) -> Path:
        """The faas.toml that says the same."""
        return self.folder / "faas.toml"

    def write(self) -> None:
        """Users, permissions and faas.toml, as they are now."""
        self.ring.prepare()
        keys = [self.ring.key(user) for user in user_names(self.tenants, ())]
        path = self.ring.write(users_of(keys, self.tenants, self.streams))
        user, _, password = TESTER.partition(":")
        path.write_text(path.read_text().replace("users: [\n", f"users: [\n    {{ user: {user}, password: {password} }}\n", 1))
        self.toml.write_text("".join(map(_as_toml, self.tenants)))

    async def start(self) -> None:
        """On the port that it had before, where it had one."""
        for old in self.folder.glob("*.ports"):
            old.unlink()
        (self.folder / "server.conf").write_text(
            f"""server_name: permitted
listen: "127.0.0.1:{self.port}"
ports_file_dir: "{self.folder}"
log_file: "{self.folder / "server.log"}"
max_payload: {2**20}
max_pending: {64 * 2**20}
jetstream {{ store_dir: "{self.folder / "store"}", max_file_store: {2**36}, max_memory_store: {2**26}, sync_interval: always }}
include ./keys/faas-users.conf
"""
        )
        self.process = await asyncio.create_subprocess_exec(
            find_server(), "-c", str(self.folder / "server.conf"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        file = self.folder / f"nats-server_{self.process.pid}.ports"
        async with asyncio.timeout(10):
            while not (urls := await asyncio.to_thread(_urls, file)):
                pass
        self.port = int(urls[0].rpartition(":")[2])

    async def reload(self) -> None:
        """Have it read its users again; returns once it has."""
        assert self.process is not None
        before = self.log.count("Reloaded server configuration")
        self.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(5):
            while await asyncio.to_thread(lambda: self.log.count("Reloaded server configuration")) == before:
                pass

    @asynccontextmanager
    async def user(self, name: str) -> AsyncIterator[tuple[Client, list[str]]]:
        """A bare client with the seed of a user, and what the server has refused it so far."""
        refused: list[str] = []

        async def note(error: Exception) -> None:
            refused.append(str(error))

        seed = read_seed(self.seed(name))
        client = await nats.connect(
            f"nats://127.0.0.1:{self.port}", nkeys_seed_str=seed, inbox_prefix=inbox_of(seed), error_cb=note, allow_reconnect=False
        )
        try:
            yield client, refused
        finally:
            await client.close()

    async def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()

    @property
    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    def violations(self) -> list[str]:
        """What the server refused to nodes, a line each."""
        found = re.findall(r'"v[^"]*:faas [^"]*" - "[^"]*" - (\w+ Violation - .*)', self.log)
        return sorted(set(found))


def _as_toml(tenant: TenantConfig) -> str:
    lists = f"subscribe = {json.dumps(tenant.subscribe)}\npublish = {json.dumps(tenant.publish)}\n"
    tokens = (f"[[tenant.token]]\nsha256 = {json.dumps(token.sha256)}\nscopes = {json.dumps(token.scopes)}\n" for token in tenant.token)
    return "".join([f"[[tenant]]\nname = {json.dumps(tenant.name)}\n{lists}", *tokens])


def _urls(file: Path) -> list[str]:
    try:
        return list(json.loads(file.read_text())["nats"])
    except (OSError, ValueError, KeyError):
        return []


RUNNING: dict[str, Permitted] = {}
"""By URL, as nodes are given it."""


@asynccontextmanager
async def permitted(folder: Path, tenants: Sequence[TenantConfig], *, streams: Iterable[str] = ()) -> AsyncIterator[Permitted]:
    """Such a server until the block is left; what it refused to a node fails the test."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Permitted(folder, tenants, tuple(streams))
    server.write()
    await server.start()
    RUNNING[server.url] = server
    try:
        yield server
    finally:
        del RUNNING[server.url]
        await server.end()
    if violations := server.violations():
        raise AssertionError("the server refused to nodes: " + "; ".join(violations))


def suite_tenants() -> list[TenantConfig]:
    """The tenants that the tests name, with lists that hold every subject which they name: by its first token, and nothing of the runtime's."""
    firsts, names = set(), {"default"}
    for file in _sources():
        text = file.read_text()
        firsts |= {first for first in re.findall(r'"([a-z][a-z0-9_-]*)\.[a-z0-9*>{]', text) if problem_with(first) is None}
        names |= set(re.findall(r'tenant = \\?"([a-z][a-z0-9-]*)\\?"', text))
    lists = tuple(sorted({*firsts, *(f"{first}.>" for first in firsts)}))
    return [TenantConfig(name=name, subscribe=lists, publish=lists) for name in sorted(names)]


def suite_streams() -> list[str]:
    """The streams of their own that the tests' functions name, or make names for."""
    return sorted({name for file in _sources() for name in re.findall(r'"(OWN_[A-Z]+|MINE)"', file.read_text())} | set(MADE_NAMES))


def _sources() -> list[Path]:
    return [file for folder in SUITE_FOLDERS for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".toml", ".json")]
