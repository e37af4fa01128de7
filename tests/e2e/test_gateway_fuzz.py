"""Requests as an attacker writes them, seeded: nothing of a path, a header or a payload becomes a subject, a header of NATS, a file name or a command."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from doors import Doors, doors
from nats.aio.msg import Msg
from node import head

SEED = 41
REQUESTS = 600
AT_ONCE = 16
MARK = "zqx"
"""In every hostile text, so that it can be found wherever it comes out."""
NAME = r"[a-z][a-z0-9-]{0,62}"
OURS = re.compile(rf"faas\.(invoke|submit|hook|outcome|attempt|chunk|log|cancel|dead|usage)\.{NAME}\.{NAME}(\.[a-z2-7]{{26}}|\.-)?")
"""What a subject may look like that holds a name from a request."""
HEADERS = re.compile(
    r"(?i)content-type|ce-[^:\s]+|traceparent|tracestate|Faas-(Timeout|Deadline|Depth|Reply-To|Chunk-To|Idempotency-Key)|Nats-Msg-Id"
)
"""What an event of a request may have as headers; any other would act by its name."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with doors(tmp_path_factory.mktemp("fuzz"), environ={"FAAS_HTTP__BODY_TIMEOUT": "1s", "FAAS_HTTP__KEEP_ALIVE": "2s"}) as door:
        yield door


def hostile(draw: random.Random, canary: Path) -> str:
    return draw.choice(
        [
            f"../../../{MARK}", f"{MARK}.*", f"*.{MARK}", f"{MARK}.>", ">", "*", f"{MARK} {MARK}", f"{MARK}\tx", f"$(touch {canary}){MARK}",
            f"`touch {canary}`{MARK}", f";touch {canary};{MARK}", f"|touch {canary}|{MARK}", f"{MARK}\x00", f"{MARK}\r\nPUB faas.usage.{MARK}.x 1\r\nx",
            f"{MARK}\nX-{MARK}: 1", f"faas.{MARK}", f"$JS.API.{MARK}", f"_INBOX.{MARK}", f"/{MARK}", f"\\\\{MARK}", f"{MARK}ä", f"{MARK}\u2028",
            f"%2e%2e%2f{MARK}", f"%00{MARK}", f"%0d%0a{MARK}", f"{MARK}" * 100, f"{{{{{MARK}}}}}", f"'{MARK}\"", f"{MARK}/../{MARK}", f"file:///{MARK}",
            f"FAAS_PAYLOADS/{MARK}", f"{MARK}-1", f"{MARK}", "", f"-{MARK}", f"{MARK.upper()}",
        ]
    )  # fmt: skip


NAMES = [
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-subject",
    "ce-time",
    "ce-dataref",
    "Content-Type",
    "traceparent",
    "tracestate",
    "Faas-Deadline",
    "Faas-Timeout",
    "Faas-Depth",
    "Faas-Chunk-To",
    "Faas-Invocation",
    "Faas-Reply-To",
    "Nats-Msg-Id",
    "Prefer",
    "Accept",
    "Last-Event-ID",
    "Authorization",
    "Idempotency-Key",
    "Content-Encoding",
    "Expect",
    "Cookie",
]


def _lines(draw: random.Random, text: Callable[[], str]) -> list[str]:
    names = [*NAMES, f"ce-{MARK}", f"Nats-{MARK}", f"X-{MARK}", f"ce-{text()[:20]}"]
    lines = [f"{draw.choice(names)}: {text()}" for _ in range(draw.randint(0, 6))]
    if draw.random() < 0.5:
        lines += ["ce-specversion: 1.0", "ce-id: 1", "ce-source: /a", f"ce-type: {text()}"]
    lines += draw.choice([[], ["Prefer: respond-async"], ["Prefer: wait=0"], ["Accept: text/event-stream"]])
    return lines + draw.choice([[], ["Content-Type: application/json"], ["Content-Type: application/cloudevents+json"]])


def request(draw: random.Random, canary: Path) -> bytes:
    """One request, as bytes: mostly well-formed HTTP around hostile text."""

    def text() -> str:
        return hostile(draw, canary)

    def encoded(safe: str = "") -> str:
        return draw.choice([quote(text(), safe=safe), quote(quote(text(), safe=""), safe=safe), text().replace(" ", "+")])

    path = draw.choice(
        [
            lambda: f"/invoke/{encoded()}/{encoded()}",
            lambda: f"/invoke/default/{encoded()}",
            lambda: "/invoke/default/" + draw.choice(["double", "whole", "back", "tokens"]),
            lambda: f"/invocations/{encoded()}{draw.choice(['', '/events', '/' + encoded()])}",
            lambda: f"/hooks/{encoded()}/{encoded()}",
            lambda: f"/{encoded(safe='/')}",
            lambda: f"/functions?{encoded()}={encoded()}",
            lambda: f"/usage?by={encoded()}&since={encoded()}",
        ]
    )()
    lines = _lines(draw, text)
    body = draw.choice(
        [b"", text().encode(), b'{"n": 1}', b'{"specversion":"1.0","id":"' + text().encode() + b'","source":"/a","type":"t","data":1}']
    )
    method = draw.choice(["POST"] * 5 + ["GET", "GET", "DELETE", "PUT", MARK.upper()])
    first = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return (first + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode("utf-8", "surrogatepass") + body


async def test_nothing_of_a_request_acts_by_what_it_says(door: Doors, tmp_path: Path) -> None:
    """Six hundred of them; the bus is listened to as a whole, and the node still serves."""
    draw, canary = random.Random(SEED), tmp_path / "canary"
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    await door.node.client.subscribe(">", cb=hear)
    await door.node.client.flush()
    statuses: list[int] = []
    room = asyncio.Semaphore(AT_ONCE)

    async def send(data: bytes) -> None:
        async with room:
            reader, writer = await asyncio.open_connection(*door.address)
            try:
                writer.write(data)
                answer = await reader.read()
                statuses.append(int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0)
                assert b"\r\nX-" + MARK.encode() not in answer.partition(b"\r\n\r\n")[0]
            except ConnectionError:
                statuses.append(0)
            finally:
                writer.close()

    await asyncio.gather(*(send(request(draw, canary)) for _ in range(REQUESTS)))
    await door.node.client.flush()
    status, _, _ = await door.post("/invoke/default/double", b'{"n":1}', Content_Type="application/json")
    marked = {message.subject for message in heard if MARK in message.subject.lower() or MARK in message.reply.lower()}
    asked = [message for message in heard if message.subject.startswith(("faas.invoke.", "faas.submit."))]

    assert status == 200
    assert not [subject for subject in marked if not OURS.fullmatch(subject)]
    assert asked
    assert not {name for message in asked for name in head(message) if not HEADERS.fullmatch(name)}
    assert not canary.exists()
    assert not [path for path in door.node.state.rglob(f"*{MARK}*") if "code" not in path.parts]
    assert "request.failed" not in (door.node.state / "node.log").read_text()
    assert {200, 202, 400, 404, 405} <= set(statuses)
    assert not [status for status in statuses if status >= 500 and status != 501]  # what is not built yet says so
