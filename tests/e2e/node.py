"""A node as its users start it: the command `faas up` in a process of its own, and a bare nats-py client beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import permitted

FAAS = [sys.executable, "-m", "faas"]
PROJECT = Path(__file__).resolve().parents[2]
OWN_BUS = ("--bus", "127.0.0.1:0")
"""Of whoever needs the embedded server, whatever bus the other tests run on."""
OWN_SERVER = {"FAAS_BUS__SYNC", "FAAS_BUS__MAX_PAYLOAD"}
"""What only an embedded server takes."""
SHORT_LEASE = {"FAAS_BUS__ACK_WAIT": "2s"}
ECHO = "def handle(event: int):\n    return event\n"


def write_function(root: Path, name: str, code: str, spec: str = "") -> None:
    """functions/<name>/ with a handler and a function.toml."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "handler.py").write_text(code)
    (folder / "function.toml").write_text(spec)


@dataclass
class Node:
    """A running node: its process, node.json, and a connection of a foreign client."""

    process: asyncio.subprocess.Process
    info: dict[str, Any]
    state: Path
    client: Client
    outcomes: dict[str, list[Msg]] = field(default_factory=dict)  # by event id
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def watch(self) -> None:
        """Collect the outcomes of every function from now on."""

        async def on(message: Msg) -> None:
            async with self.arrived:
                self.outcomes.setdefault(head(message)["Faas-Event-Id"], []).append(message)
                self.arrived.notify_all()

        await self.client.subscribe("faas.outcome.>", cb=on)
        await self.client.jetstream().account_info()  # a fence: the subscription is there

    async def outcome(self, event_id: str, wait_s: float = 8.0) -> Msg:
        """The outcome of an event, by the event's id."""
        async with asyncio.timeout(wait_s), self.arrived:
            await self.arrived.wait_for(lambda: event_id in self.outcomes)
        return self.outcomes[event_id][0]

    async def event(self, subject: str, data: bytes, *, id: str, headers: Mapping[str, str] | None = None, wait_s: float = 8.0) -> Msg:
        """Publish one event with this id and wait for its outcome."""
        await self.client.jetstream().publish(subject, data, headers={"Nats-Msg-Id": id, **(headers or {})})
        return await self.outcome(id, wait_s)

    async def request(self, function: str, data: bytes, *, headers: Mapping[str, str] | None = None, wait_s: float = 8.0) -> Msg:
        """A synchronous invocation."""
        return await self.client.request(f"faas.invoke.default.{function}", data, timeout=wait_s, headers=dict(headers or {}) or None)

    async def stored(self, stream: str, subject: str) -> list[Msg]:
        """Every message of a stream under a subject, in order."""
        expected = await self.count(stream, subject)
        if not expected:
            return []
        subscription = await self.client.jetstream().subscribe(subject, stream=stream, ordered_consumer=True)
        found = [await subscription.next_msg(timeout=5) for _ in range(expected)]
        consumer = await subscription.consumer_info()
        await subscription.unsubscribe()
        await self.client.jetstream().delete_consumer(stream, consumer.name)  # else it stays, and a stream takes a thousand
        return found

    async def count(self, stream: str, subject: str) -> int:
        """How many messages a stream has under a subject."""
        info = await self.client.jetstream().stream_info(stream, subjects_filter=subject)
        return sum((info.state.subjects or {}).values())

    async def records(self, function: str, invocation: str, *, at_least: int = 1, wait_s: float = 5.0) -> list[dict[str, Any]]:
        """The usage records of an invocation's attempts, one per record_id, once so many are stored."""
        async with asyncio.timeout(wait_s):
            while True:
                found = {
                    record["record_id"]: record
                    for message in await self.stored("FAAS_USAGE", f"faas.usage.default.{function}")
                    for record in json.loads(message.data)
                    if record["invocation_id"] == invocation and record["kind"] == "attempt"
                }
                if len(found) >= at_least:
                    return list(found.values())

    async def letters(self, function: str, invocation: str) -> list[Msg]:
        """The dead letters of an invocation at this moment; they are written after its outcome and before its usage."""
        return [m for m in await self.stored("FAAS_DEAD", f"faas.dead.default.{function}") if head(m).get("Faas-Invocation") == invocation]

    async def letter(self, function: str, invocation: str, wait_s: float = 5.0) -> Msg:
        """The one dead letter of an invocation, once it is there."""
        async with asyncio.timeout(wait_s):
            while not (found := await self.letters(function, invocation)):
                pass
        (only,) = found
        return only


def head(message: Msg) -> dict[str, str]:
    """A message's headers, none being an empty dict."""
    return dict(message.headers or {})


def end(message: Msg) -> tuple[str, str]:
    """(outcome, reason) of an outcome or a reply."""
    return head(message).get("Faas-Outcome", ""), head(message).get("Faas-Reason", "")


@asynccontextmanager
async def running(functions: Path, state: Path, *options: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Node]:
    """`faas up` until the block is left; then SIGTERM, and SIGKILL where it does not end."""
    state.mkdir(parents=True, exist_ok=True)
    if permitted.ASKED and not {"--nats", "--config", "--bus"} & set(options) and not (environ or {}).keys() & OWN_SERVER:
        async with permitted.permitted(state / "permitted", permitted.suite_tenants(), streams=permitted.suite_streams()) as server:
            bus = ("--nats", server.url, "--config", str(server.toml))
            async with running(functions, state, *options, *bus, environ=environ) as node:
                yield node
        return
    process = await start(functions, state, *options, environ=environ)
    try:
        info = await ready(process, state)
        client = await nats.connect(info["nats"].split(","))
        try:
            yield Node(process, info, state, client)
        finally:
            await client.close()
    finally:
        await stop(process)


async def start(functions: Path, state: Path, *options: str, environ: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start `faas up` on free ports, or on the bus that --nats names; its output in STATE/node.log."""
    bus: tuple[str, ...] = () if {"--nats", "--bus"} & set(options) else OWN_BUS
    if "--nats" in options and (server := permitted.RUNNING.get(options[options.index("--nats") + 1])):
        bus = ("--nkey", str(server.seed("node")))
    with (state / "node.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *FAAS, "up", "--functions", str(functions), "--state", str(state), *bus, "--http", "127.0.0.1:0", *options,
            cwd=PROJECT, env={**os.environ, **(environ or {})}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


async def ready(process: asyncio.subprocess.Process, state: Path, wait_s: float = 120.0) -> dict[str, Any]:
    """node.json of this very process."""
    ended = asyncio.ensure_future(process.wait())
    async with asyncio.timeout(wait_s):
        while not ended.done():
            try:
                info: dict[str, Any] = json.loads((state / "node.json").read_text())
            except (OSError, ValueError):
                info = {}
            if info.get("pid") == process.pid:
                ended.cancel()
                return info
            await asyncio.wait([ended], timeout=0.05)
    raise AssertionError((state / "node.log").read_text()[-2000:])


async def stop(process: asyncio.subprocess.Process, wait_s: float = 20.0) -> int:
    """SIGTERM, and the exit code."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(wait_s):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
    assert process.returncode is not None
    return process.returncode


async def command(*arguments: str, environ: Mapping[str, str] | None = None, wait_s: float = 8.0) -> tuple[int, str, str]:
    """Run `faas ...` to its end: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *FAAS, *arguments, cwd=PROJECT, env={**os.environ, **(environ or {})}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    try:
        async with asyncio.timeout(wait_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def free(functions: Path, state: Path) -> list[str]:
    return ["up", "--functions", str(functions), "--state", str(state), "--bus", "127.0.0.1:0", "--http", "127.0.0.1:0"]


@asynccontextmanager
async def echoing(root: Path, *options: str, **functions: str) -> AsyncIterator[Node]:
    """A node with an `echo` on life.echo, and whatever else."""
    write_function(root / "functions", "echo", ECHO, '[[trigger]]\nsubject = "life.echo"\n')
    for name, code in functions.items():
        write_function(root / "functions", name, code, f'[[trigger]]\nsubject = "life.{name}"\n')
    async with running(root / "functions", root / "state", *options, environ=SHORT_LEASE) as node:
        await node.watch()
        yield node
