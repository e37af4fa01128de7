"""A JetStream cluster of three nats-servers on this machine, each of which can be killed and started again; for whatever test wants one."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats
import nats.errors
import nats.js.errors

from faas.bus.server import find_server
from faas.processes import die_with_parent

SIZE = 3
Place = tuple[str, tuple[str, ...]]
"""An address, and what a command begins with to run where that is."""


@dataclass
class Server:
    """One of them."""

    name: str
    folder: Path
    cluster_port: int
    host: str = "127.0.0.1"
    way: tuple[str, ...] = ()  # what its command begins with, to run in a network of its own
    process: asyncio.subprocess.Process | None = None
    port: int = -1

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def route(self) -> str:
        return f"nats://{self.host}:{self.cluster_port}"

    async def start(self, routes: list[str]) -> None:
        """On the port that it had before, where it had one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.ports"):
            old.unlink()
        (self.folder / "server.conf").write_text(
            f"""server_name: {self.name}
listen: "{self.host}:{self.port}"
ports_file_dir: "{self.folder}"
log_file: "{self.folder / "server.log"}"
jetstream {{ store_dir: "{self.folder / "store"}", max_file_store: {2**33}, max_memory_store: {2**26} }}
cluster {{ name: faas, listen: "{self.host}:{self.cluster_port}", routes: {json.dumps(routes)} }}
"""
        )
        self.process = await asyncio.create_subprocess_exec(
            *self.way, find_server(), "-c", str(self.folder / "server.conf"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        file = self.folder / f"nats-server_{self.process.pid}.ports"
        async with asyncio.timeout(10):
            while not (urls := await asyncio.to_thread(_urls, file)):
                pass
        self.port = int(urls[0].rpartition(":")[2])

    async def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()


@dataclass
class Cluster:
    """The three, by name."""

    servers: dict[str, Server] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers.values())

    async def start(self, name: str) -> None:
        await self.servers[name].start([server.route for server in self.servers.values() if server.name != name])

    async def leader(self, stream: str) -> str:
        """The name of the server that leads a stream."""
        client = await nats.connect(self.url.split(","))
        try:
            info = await client.jetstream().stream_info(stream)
            assert info.cluster is not None
            return str(info.cluster.leader)
        finally:
            await client.close()


def _urls(file: Path) -> list[str]:
    try:
        return list(json.loads(file.read_text())["nats"])
    except (OSError, ValueError, KeyError):
        return []


@asynccontextmanager
async def running_cluster(root: Path, places: Mapping[str, Place] | None = None) -> AsyncIterator[Cluster]:
    """Three servers that have found one another, with JetStream ready; on this machine, or each in a place of its own."""
    cluster = Cluster()
    for name, (host, way) in (places or {}).items():
        cluster.servers[name] = Server(name, root / name, 6222, host=host, way=way)
    with ExitStack() as taken:  # together, so that they are three different ones
        for n in range(0 if places else SIZE):
            socket_ = taken.enter_context(socket.socket())
            socket_.bind(("127.0.0.1", 0))
            cluster.servers[f"n{n}"] = Server(f"n{n}", root / f"n{n}", socket_.getsockname()[1])
    try:
        for name in cluster.servers:
            await cluster.start(name)
        await _ready(cluster)
        yield cluster
    finally:
        for server in cluster.servers.values():
            await server.end()


async def _ready(cluster: Cluster) -> None:
    """Until a stream of three replicas can be made."""
    client = await nats.connect(cluster.url.split(","))
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.jetstream(timeout=2).add_stream(name="READY", subjects=["ready"], num_replicas=SIZE)
                except (nats.js.errors.Error, nats.errors.Error):
                    continue
                await client.jetstream().delete_stream("READY")
                return
    finally:
        await client.close()
