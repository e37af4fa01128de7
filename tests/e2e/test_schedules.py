"""Schedules as their authors and operators meet them: events that come by themselves, on time, once, from any node, and as the registry says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from nats.aio.msg import Msg
from node import SHORT_LEASE, Node, end, head, running, write_function

pytestmark = pytest.mark.timeout(60)  # each of its commands is a process

EVENT = (
    "import faas\n"
    "def handle(event: faas.Event, ctx):\n"
    "    time = event.time.isoformat() if event.time else None\n"
    "    return [event.id, event.source, event.type, event.subject, time, event.extensions, event.data, ctx.invocation_id]\n"
)
SECONDLY = '[[trigger]]\nschedule = "* * * * * *"\n'
YEARLY = '[[trigger]]\nschedule = "30 3 1 1 *"\ntimezone = "Europe/Berlin"\npayload = {{ mode = "full", depth = {depth} }}\n'


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    root = tmp_path_factory.mktemp("schedules")
    write_function(root / "functions", "ticks", EVENT, SECONDLY)
    async with running(root / "functions", root / "state", "--environments", "current", environ=SHORT_LEASE) as node:
        await node.watch()
        yield node


async def fires(node: Node, function: str, count: int, wait_s: float = 20.0) -> list[Msg]:
    """The next outcomes of a function that schedules set off, by event."""
    seen = {id for id, messages in node.outcomes.items() if head(messages[0])["Faas-Function"] == function}
    async with asyncio.timeout(wait_s), node.arrived:

        def new() -> list[Msg]:
            of = [
                messages[0] for id, messages in node.outcomes.items() if head(messages[0])["Faas-Function"] == function and id not in seen
            ]
            return sorted(of, key=lambda message: head(message)["Faas-Event-Id"])

        await node.arrived.wait_for(lambda: len(new()) >= count)
    return new()[:count]


async def armed(node: Node, function: str, number: int = 0, *, until: Any = bool) -> dict[str, str] | None:
    """The headers of what waits for a schedule to be due, once they are as is wanted."""
    async with asyncio.timeout(8):
        while True:
            found = await node.client.request(
                "$JS.API.STREAM.MSG.GET.FAAS_SCHEDULES", json.dumps({"last_by_subj": f"faas.schedule.default.{function}.{number}"}).encode()
            )
            message = json.loads(found.data).get("message")
            headers = decoded(message["hdrs"]) if message else None
            if until(headers):
                return headers


def decoded(raw: str) -> dict[str, str]:
    import base64

    lines = base64.b64decode(raw).decode().split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def test_a_schedule_fires_every_time_and_once(node: Node) -> None:
    """The whole path: the registry, a message that waits in the server, an event, an outcome; the next is armed before it is due."""
    outcomes = await fires(node, "ticks", 4)
    times = [datetime.fromisoformat(json.loads(outcome.data)[0]).timestamp() for outcome in outcomes]

    assert [end(outcome) for outcome in outcomes] == [("succeeded", "")] * 4
    assert times == [times[0] + second for second in range(4)]
    assert all(len(node.outcomes[head(outcome)["Faas-Event-Id"]]) == 1 for outcome in outcomes)
