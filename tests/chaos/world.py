"""A nats-server, nodes on it, functions that count their executions, a publisher, and the invariants: what every fault is tried in.

I1 every accepted event has exactly one outcome; I2 outcomes are unique; I3 the ledger is the set of distinct record ids, each of one content,
and every outcome's usage is a subset of it; I4 no process and no socket is left behind; I5 the loops of the nodes are not held up.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from faas.bus.server import find_server

CRASHING = Path(__file__).resolve().parent / "crashing.py"
PROJECT = CRASHING.parents[2]
ACK_WAIT_S = 2.0
READY_S = 60.0
LAG_S = 2.0
"""The p99 of a loop's lag is to be under 50 ms, and is printed; asserted is what a machine with other work can keep as well."""
EXECUTED = (
    "import os\ndef note(ctx):\n    with open({log!r}, 'a') as log:\n        log.write(f'{{ctx.invocation_id}} {{ctx.attempt}}\\n')\n"
)
FUNCTIONS = {
    "quick": "def handle(event: int, ctx):\n    note(ctx)\n    return event\n",
    "slow": "import time\ndef handle(event: int, ctx):\n    note(ctx)\n    time.sleep(0.02 + event % 7 / 50)\n    return event\n",
    "flaky": "import faas\ndef handle(event: int, ctx):\n    note(ctx)\n    if ctx.attempt < 1 + event % 3:\n        raise faas.Retry(0.05)\n    return event\n",
    "fragile": "def handle(event: int, ctx):\n    note(ctx)\n    if event % 5 == 0 and ctx.attempt == 1:\n        os._exit(1)\n    return event\n",
    "wrong": "def handle(event: int, ctx):\n    note(ctx)\n    raise ValueError(event)\n",
}


@dataclass
class Verdict:
    """What is left when all has settled. Everything but `executed_again` must be 0."""

    accepted: int
    lost: list[str]
    duplicated: list[str]
    contradicting: list[str]
    missing_from_ledger: list[str]
    letters_missing: list[str]
    executed_again: int
    longest_stall_s: float
    lag_p99_s: float

    @property
    def broken(self) -> list[str]:
        """The names of what must be empty and is not, and of a loop that was held up."""
        names = ("lost", "duplicated", "contradicting", "missing_from_ledger", "letters_missing")
        late = [f"loop lag: p99 {self.lag_p99_s:.3f} s"] if self.lag_p99_s > LAG_S else []
        return [f"{name}: {len(getattr(self, name))}, like {getattr(self, name)[:3]}" for name in names if getattr(self, name)] + late


@dataclass
class NodeProcess:
    """One `faas up --nats`, started again under the same name."""

    name: str
    state: Path
    process: asyncio.subprocess.Process | None = None


@dataclass
class World:
    """`async with World(folder)`; then `node`, `publish`, faults, `settle`, `verdict`."""

    folder: Path
    seed: int = 0
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    accepted: dict[str, tuple[str, int]] = field(default_factory=dict)  # event id -> function, value
    outcomes: dict[str, list[float]] = field(default_factory=dict)  # event id -> when each was heard
    url: str = ""
    environments: str = "build"
    _accepting: asyncio.Condition = field(default_factory=asyncio.Condition)
    left: list[str] = field(default_factory=list)  # processes that its nodes left behind
    _server: asyncio.subprocess.Process | None = None
    _client: Client | None = None
    _port: int = 0

    async def __aenter__(self) -> World:
        self.random = random.Random(self.seed)
        self.functions, self.log = self.folder / "functions", self.folder / "executed"
        for name, code in FUNCTIONS.items():
            self.function(name, EXECUTED.format(log=str(self.log)) + code)
        self.log.touch()
        await self.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            if node.process is not None and node.process.returncode is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.terminate()
                try:
                    async with asyncio.timeout(15):
                        await node.process.wait()
                except TimeoutError:
                    node.process.kill()
                    await node.process.wait()
        self.left = self.left_behind()
        if self._client is not None:
            await self._client.close()
        if self._server is not None and self._server.returncode is None:
            self._server.send_signal(signal.SIGCONT)
            self._server.kill()
            await self._server.wait()

    def function(self, name: str, code: str, spec: str = "") -> None:
        folder = self.functions / name
        folder.mkdir(parents=True)
        (folder / "handler.py").write_text(code)
        (folder / "function.toml").write_text(f'[[trigger]]\nsubject = "chaos.{name}"\n[retry]\nbackoff = "50ms"\nmax_attempts = 4\n{spec}')

    # ------------------------------------------------------------ the bus

    async def start_server(self) -> None:
        """A nats-server that syncs every write; on the port that it had."""
        folder = self.folder / "nats"
        folder.mkdir(exist_ok=True)
        ports = folder / "ports"
        ports.mkdir(exist_ok=True)
        for old in ports.iterdir():
            old.unlink()
        config = folder / "server.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self._port or -1}"\nports_file_dir: "{ports}"\njetstream {{ store_dir: "{folder}", sync_interval: always }}\n'
        )
        self._server = await asyncio.create_subprocess_exec(
            find_server(), "-c", str(config), "-l", str(folder / "log"), start_new_session=True
        )
        while not self._port:
            for file in ports.glob("*.ports"):
                urls = json.loads(file.read_text() or "{}").get("nats") or []
                self._port = int(urls[0].rpartition(":")[2]) if urls else 0
            await asyncio.sleep(0.01)
        self.url = f"nats://127.0.0.1:{self._port}"
        if self._client is None:
            self._client = await self._connect()

    async def _connect(self) -> Client:
        client = None
        while client is None:
            try:
                client = await nats.connect(
                    self.url.split(","), max_reconnect_attempts=-1, reconnect_time_wait=0.1, ping_interval=5, error_cb=_nothing
                )
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)

        async def heard(message: Any) -> None:
            self.outcomes.setdefault(message.headers["Faas-Event-Id"], []).append(time.monotonic())

        await client.subscribe("faas.outcome.>", cb=heard)
        return client

    async def kill_server(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it by a signal, and start it again."""
        assert self._server is not None
        self._server.send_signal(how)
        await self._server.wait()
        await self.start_server()

    async def freeze_server(self, for_s: float) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        await asyncio.sleep(for_s)
        self._server.send_signal(signal.SIGCONT)

    # ------------------------------------------------------------ nodes

    async def node(self, name: str, *, crash_at: str = "", environ: Mapping[str, str] | None = None) -> None:
        """Start a node of this name, or start it again, and wait until it serves."""
        node = self.nodes.setdefault(name, NodeProcess(name, self.folder / name))
        node.state.mkdir(exist_ok=True)
        shared = self.folder / "environments"
        shared.mkdir(exist_ok=True)
        if not (node.state / "environments").exists():
            (node.state / "environments").symlink_to(shared)  # built once for all nodes
        arguments = ["up", "--nats", self.url, "--functions", str(self.functions), "--state", str(node.state), "--http", "127.0.0.1:0"]
        arguments += ["--environments", self.environments]
        own = {"FAAS_BUS__ACK_WAIT": f"{ACK_WAIT_S:g}s", "CRASH_AT": crash_at, "LAG": str(node.state / "lag")}
        with (node.state / "node.log").open("ab") as log:
            node.process = await asyncio.create_subprocess_exec(
                *self.way(name), sys.executable, str(CRASHING), *arguments, "--node", name, cwd=PROJECT, env={**os.environ, **own, **(environ or {})}, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        ended = asyncio.ensure_future(node.process.wait())
        async with asyncio.timeout(READY_S):
            while not (node.state / "node.json").exists() and not ended.done():
                await asyncio.wait([ended], timeout=0.02)
        ended.cancel()

    def way(self, name: str) -> tuple[str, ...]:
        """What the command of a node begins with."""
        return ()

    def is_up(self, name: str) -> bool:
        process = self.nodes[name].process
        return process is not None and process.returncode is None

    async def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a node a signal that ends it, and wait for that."""
        process = self.nodes[name].process
        if process is not None and process.returncode is None:
            process.send_signal(how)
            await process.wait()
        (self.nodes[name].state / "node.json").unlink(missing_ok=True)

    async def ended(self, name: str) -> None:
        """Wait until a node has ended by itself, as one with a crash point does."""
        process = self.nodes[name].process
        assert process is not None
        await process.wait()
        (self.nodes[name].state / "node.json").unlink(missing_ok=True)

    def workers(self, name: str) -> list[int]:
        """The pids of a node's worker processes: those that are deepest below it."""
        process = self.nodes[name].process
        return [pid for pid, depth in _below(process.pid if process is not None else 0) if depth >= 5]

    def left_behind(self) -> list[str]:
        """Living processes of this world's sandboxes: their command lines name its folder; and sockets that are bound in it."""
        found = [line for line in Path("/proc/net/unix").read_text().splitlines() if str(self.folder) in line]
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() and int(entry.name) != os.getpid() else b""
                alive = line and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            except (FileNotFoundError, ProcessLookupError):
                continue
            if alive and str(self.folder).encode() in line and b"nats-server" not in line:
                found.append(f"{entry.name} {line[:80]!r}")
        return found

    def kill_worker(self, name: str) -> bool:
        """SIGKILL one worker of a node; False where it has none."""
        workers = self.workers(name)
        if not workers:
            return False
        try:
            os.kill(self.random.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    # ------------------------------------------------------------ events

    @property
    def stream(self) -> JetStreamContext:
        """The bus as any publisher sees it."""
        assert self._client is not None
        return self._client.jetstream(timeout=2)

    async def publish(self, count: int, functions: list[str] | None = None) -> None:
        """Publish events with ids of their own, each until it is acknowledged."""
        for _ in range(count):
            number = len(self.accepted)
            function = self.random.choice(functions or list(FUNCTIONS))
            id, value = f"e{self.seed}-{number}", self.random.randrange(1000)
            while True:
                try:
                    await self.stream.publish(f"chaos.{function}", b"%d" % value, headers={"Nats-Msg-Id": id})
                    break
                except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError):
                    await asyncio.sleep(0.1)  # not acknowledged: the same id again
            self.accepted[id] = (function, value)
            async with self._accepting:
                self._accepting.notify_all()
            await asyncio.sleep(self.random.uniform(0, 0.02))  # over a while, so that faults fall among them

    async def under_way(self, events: int) -> None:
        """Wait until so many more events than now are accepted: a fault then falls among those that run."""
        wanted = len(self.accepted) + events
        async with self._accepting:
            await self._accepting.wait_for(lambda: len(self.accepted) >= wanted)

    async def settle(self, within_s: float) -> None:
        """Wait until every accepted event has an outcome in the stream, or the time is up."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                if len(await self._stored_outcomes()) >= len(self.accepted) and not await self._waiting():
                    return
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError):
                pass
            await asyncio.sleep(0.3)

    async def _waiting(self) -> int:
        """Events that are not acknowledged."""
        assert self._client is not None
        infos = await self._client.jetstream().consumers_info("FAAS_EVENTS")
        return sum((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos)

    async def _stored_outcomes(self) -> dict[str, list[Mapping[str, str]]]:
        found: dict[str, list[Mapping[str, str]]] = {}
        for headers, _ in await self.read("FAAS_OUTCOMES", "faas.outcome.>"):
            found.setdefault(headers["Faas-Event-Id"], []).append(headers)
        return found

    async def read(self, stream: str, subject: str) -> list[tuple[Mapping[str, str], bytes]]:
        """(headers, body) of everything that a stream has under a subject."""
        assert self._client is not None
        jetstream = self._client.jetstream(timeout=5)
        subscription = await jetstream.subscribe(subject, stream=stream, ordered_consumer=True)
        info = await subscription.consumer_info()
        left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
        found = []
        for _ in range(left):
            message = await subscription.next_msg(timeout=5)
            found.append((message.headers or {}, message.data))
        await subscription.unsubscribe()
        await jetstream.delete_consumer(stream, info.name)
        return found

    # ------------------------------------------------------------ the end

    def lag_p99_s(self) -> float:
        """Of the loops of all nodes together; the moments in which a test had one stopped are among them."""
        lags = sorted(float(lag) for node in self.nodes.values() for lag in (node.state / "lag").read_text().split())
        return lags[int(len(lags) * 0.99)] if lags else 0.0

    async def verdict(self) -> Verdict:
        """What the invariants say, once all has settled."""
        outcomes = await self._stored_outcomes()
        contents: dict[str, set[str]] = {}
        for _, body in await self.read("FAAS_USAGE", "faas.usage.>"):
            for record in json.loads(body):
                contents.setdefault(record["record_id"], set()).add(json.dumps(record, sort_keys=True))
        letters = {headers["Faas-Event-Id"] for headers, _ in await self.read("FAAS_DEAD", "faas.dead.>")}
        told = [record for found in outcomes.values() for head in found for record in json.loads(head["Faas-Usage"])]
        executed = Counter(self.log.read_text().split("\n"))
        heard = sorted(times[0] for times in self.outcomes.values())
        return Verdict(
            accepted=len(self.accepted),
            lost=[id for id in self.accepted if id not in outcomes],
            duplicated=[id for id, found in outcomes.items() if len(found) > 1] + await self._replaced(),
            contradicting=[id for id, texts in contents.items() if len(texts) > 1],
            missing_from_ledger=[record["record_id"] for record in told if record["record_id"] not in contents],
            letters_missing=[
                id for id, found in outcomes.items() if found[0]["Faas-Outcome"] not in ("succeeded", "cancelled") and id not in letters
            ],
            executed_again=sum(count - 1 for line, count in executed.items() if line and count > 1),
            longest_stall_s=max((later - earlier for earlier, later in itertools.pairwise(heard)), default=0.0),
            lag_p99_s=self.lag_p99_s(),
        )

    async def _replaced(self) -> list[str]:
        """Outcomes in whose place another was stored. The stream keeps the last of each subject, so only its sequence tells.

        What else takes a sequence is the word that an invocation is tried again, once for each record in the last one.
        """
        tried = sum(len(json.loads(body)) for _, body in await self.read("FAAS_OUTCOMES", "faas.attempt.>"))
        outcomes = len(await self.read("FAAS_OUTCOMES", "faas.outcome.>"))
        stored = (await self.stream.stream_info("FAAS_OUTCOMES")).state.last_seq
        return [f"one of {stored - tried - outcomes} that were replaced"] * (stored - tried - outcomes)


async def _nothing(_error: Exception) -> None:
    """nats-py's callback: the faults are ours."""


def _below(root: int, depth: int = 1) -> list[tuple[int, int]]:
    """Living descendants of a process and how deep they are."""
    found = []
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    for child in map(int, children):
        found += [(child, depth), *_below(child, depth + 1)]
    return found
