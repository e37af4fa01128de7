"""How many webhooks a second does a node take, and how fast? From the request to its 202, signed by the library of Standard Webhooks.

Closed loop: as many as `--connections` get done, one after the other on each. Open loop: `--paced` a second, each timed from when it was due, so
that a stall counts for all that it held up. Every delivery has an id of its own, is verified, and is in the stream before its 202. The floor is a
bare process that does the same with the libraries alone (floor.py), on the same nats-server, in alternating blocks. The function of the
webhook runs meanwhile, on the same cores: `backlog` is what it had not taken at the end of a block, before which nothing waits.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import floor
import measure
import nats
import uvloop
from measure import Figure, Goal
from nats.aio.client import Client
from standardwebhooks import Webhook

PATH = "/hooks/default/bench"
HANDLER = "def handle(event):\n    return None\n"
SPEC = '[[trigger]]\nwebhook = "bench"\nverify = "standard"\nsecret = "bench"\n'
BODY = json.dumps(
    {
        "type": "invoice.paid",
        "timestamp": "2026-11-24T08:00:00Z",
        "data": {
            "id": "in_1NG8Du2eZvKYlo2C",
            "customer": "cus_4QFJOjw2pOmAGJ",
            "lines": [{"amount": n, "currency": "usd"} for n in range(24)],
        },
    }
)
"""Of 1 KiB, as invoices and pull requests in short are."""
SETTLED_S = 60.0


class Connection(asyncio.Protocol):
    """One connection of a sender, one request at a time; reads no more of an answer than its status and its length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._had = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._had += data
        head, found, body = self._had.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length and self._answer is not None:
            self._had = b""
            self._answer.set_result(int(head.split(b" ", 2)[1]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RuntimeError(f"the connection was closed: {error}"))

    async def post(self, request: bytes) -> None:
        """Raises RuntimeError for any answer but 202: a refusal that is fast is no figure."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        if (status := await self._answer) != 202:
            raise RuntimeError(f"answered {status}")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Sender:
    """Who sends to one address, over connections that stay open."""

    def __init__(self, url: str, connections: list[Connection]) -> None:
        self._url, self.connections = url, connections
        self._ids = (f"msg_{time.time_ns()}_{number}" for number in itertools.count())

    @classmethod
    async def open(cls, url: str, connections: int) -> Sender:
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        return cls(url, [(await loop.create_connection(Connection, address.hostname, address.port))[1] for _ in range(connections)])

    def signed(self, count: int) -> list[bytes]:
        """Whole requests, before a clock runs: to sign is the sender's work."""
        return [self._signed(next(self._ids)) for _ in range(count)]

    def _signed(self, id: str) -> bytes:
        now = datetime.now(UTC)
        lines = [
            f"POST {PATH} HTTP/1.1", f"Host: {urlsplit(self._url).netloc}", "User-Agent: bench", "Content-Type: application/json",
            f"webhook-id: {id}", f"webhook-timestamp: {int(now.timestamp())}", f"webhook-signature: {Webhook(floor.SECRET).sign(id, now, BODY)}",
            f"Content-Length: {len(BODY)}", "", BODY,
        ]  # fmt: skip
        return "\r\n".join(lines).encode()

    async def per_s(self, count: int) -> list[float]:
        """The rate of one block, closed loop."""
        requests = iter(self.signed(count))
        began = time.perf_counter()

        async def one_after_the_other(connection: Connection, requests: Iterator[bytes]) -> None:
            for request in requests:
                await connection.post(request)

        await asyncio.gather(*(one_after_the_other(connection, requests) for connection in self.connections))
        return [count / (time.perf_counter() - began)]

    async def latencies(self, per_s: float, seconds: float) -> list[float]:
        """Seconds from when each was due to its 202, open loop."""
        requests = self.signed(round(per_s * seconds))
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in self.connections:
            free.put_nowait(connection)
        samples: list[float] = []
        began = time.perf_counter()

        async def send(due: float, request: bytes) -> None:
            connection = await free.get()
            await connection.post(request)
            samples.append(time.perf_counter() - due)
            free.put_nowait(connection)

        async with asyncio.TaskGroup() as tasks:
            for number, request in enumerate(requests):
                due = began + number / per_s
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                tasks.create_task(send(due, request))
        return samples

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@dataclass(slots=True)
class Side:
    """What one side gave: each block's rate, every latency, and the cores that strangers used meanwhile."""

    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    backlogs: list[int] = field(default_factory=list)

    async def add(self, values: list[float], block: Callable[[], Awaitable[list[float]]]) -> None:
        strangers = measure.Others()
        values += await block()
        self.others.append(strangers.cores())


async def compare(node: measure.Node, bare_url: str, settings: argparse.Namespace) -> tuple[Side, Side]:
    """(floor, node), block by block in turn."""
    client = await nats.connect(node.url)
    http = json.loads((node.state / "node.json").read_text())["http"]
    senders = [await Sender.open(url, settings.connections) for url in (bare_url, http)]
    sides = (Side(), Side())
    try:
        for sender in senders:
            await sender.per_s(settings.events // 4)
        await _settled(client)
        for _ in range(settings.rounds):
            for sender, side in zip(senders, sides, strict=True):
                await side.add(side.rates, lambda sender=sender: sender.per_s(settings.events))  # type: ignore[misc]
                side.backlogs.append(await _settled(client))
                await side.add(side.latencies, lambda sender=sender: sender.latencies(settings.paced, settings.seconds))  # type: ignore[misc]
                await _settled(client)
        return sides
    finally:
        for sender in senders:
            sender.close()
        await client.close()


async def _settled(client: Client) -> int:
    """Wait until the function has ended all that waits; how much that was."""
    stream, first, began = client.jetstream(), -1, time.perf_counter()
    while time.perf_counter() - began < SETTLED_S:
        own = [consumer for consumer in await stream.consumers_info("FAAS_EVENTS") if consumer.name.startswith("default-bench-")]
        waiting = sum((consumer.num_pending or 0) + (consumer.num_ack_pending or 0) for consumer in own)
        first = waiting if first < 0 else first
        if not waiting:
            return first
        await asyncio.sleep(0.02)
    raise RuntimeError(f"{waiting} deliveries still waited for the function after {SETTLED_S:g} s")


def rows_of(sync: str, bare: Side, ours: Side, settings: argparse.Namespace) -> list[dict[str, Figure]]:
    rows: list[dict[str, Figure]] = []
    for name, side in (("floor", bare), ("node", ours)):
        rows.append(
            {
                "what": f"{settings.connections} connections, {name}", "sync": sync, "per_s": measure.percentile(side.rates, 0.5),
                "by_round": f"{min(side.rates):,.0f}-{max(side.rates):,.0f}", "others_cores": measure.percentile(side.others, 0.5),
            }
        )  # fmt: skip
    rows[-1] |= {"ratio": rows[-2]["per_s"] / rows[-1]["per_s"], "backlog": max(ours.backlogs)}  # type: ignore[operator]
    for name, side in (("floor", bare), ("node", ours)):
        rows.append({"what": f"{settings.paced} a second, {name}", "sync": sync, **measure.spread_ms(side.latencies)})
    return rows


def main() -> None:
    settings = measure.arguments(__doc__ or "", events=4000, connections=64, paced=1250, seconds=2.0, rounds=4)
    rows: list[dict[str, Figure]] = []
    goals: list[Goal] = []
    for sync in ("default", "always"):
        with ExitStack() as stack:
            functions, state = stack.enter_context(measure.scratch(settings.state))
            measure.function(functions, "bench", handler=HANDLER, spec=SPEC)
            secrets = functions.parent / "secrets"
            secrets.mkdir(mode=0o700)
            (secrets / "bench").touch(mode=0o600)
            (secrets / "bench").write_text(floor.SECRET)
            config = f'[bus]\nsync = "{sync}"\n[secrets]\nfolder = "{secrets}"\n'
            node = stack.enter_context(measure.node(functions, state=state, config=config))
            address = functions.parent / "floor"
            stack.enter_context(measure.python(Path(floor.__file__), "webhooks", node.url, str(address)))
            bare, ours = uvloop.run(compare(node, address.read_text(), settings))
        rows += rows_of(sync, bare, ours, settings)
        if sync == "default":
            goals = [
                Goal("webhooks to their 202", measure.percentile(ours.rates, 0.5), 2500, at_most=False, unit="/s"),
                Goal("p99 at half of that", 1000 * measure.percentile(ours.latencies, 0.99), 25, unit=" ms"),
            ]
    measure.report("Webhooks: verified, stored and answered, beside the libraries alone", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
