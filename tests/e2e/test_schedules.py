"""Schedules as their authors and operators meet them: events that come by themselves, on time, once, from any node, and as the registry says."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from deploying import deploy, faas
from nats.aio.msg import Msg
from node import SHORT_LEASE, Node, command, end, head, running, write_function

from faas.identity import invocation_id

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

    def heard() -> dict[str, Msg]:
        found = [message for messages in node.outcomes.values() for message in messages if head(message)["Faas-Function"] == function]
        return {head(message)["Faas-Event-Id"]: message for message in found}

    before = heard()
    async with asyncio.timeout(wait_s), node.arrived:
        await node.arrived.wait_for(lambda: len(heard()) >= len(before) + count)
    return [message for id, message in sorted(heard().items()) if id not in before][:count]


Waiting = tuple[dict[str, str], Any]
"""Headers and body of what waits for a schedule to be due."""


async def armed(
    node: Node, function: str, until: Callable[[Waiting | None], bool] = lambda waiting: waiting is not None, *, number: int = 0
) -> Waiting | None:
    """What waits for a schedule to be due, once it is as is wanted."""
    question = json.dumps({"last_by_subj": f"faas.schedule.default.{function}.{number}"}).encode()
    async with asyncio.timeout(8):
        while True:
            answer = json.loads((await node.client.request("$JS.API.STREAM.MSG.GET.FAAS_SCHEDULES", question)).data)
            waiting = read(answer["message"]) if "message" in answer else None
            if until(waiting):
                return waiting


def with_depth(depth: int) -> Callable[[Waiting | None], bool]:
    return lambda waiting: waiting is not None and waiting[1]["depth"] == depth


def read(message: dict[str, str]) -> Waiting:
    lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")[1:]
    body = base64.b64decode(message.get("data", ""))
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}, json.loads(body or b"null")


async def test_a_schedule_fires_every_time_and_once(node: Node) -> None:
    """The whole path: the registry, a message that waits in the server, an event, an outcome; the next is armed before it is due."""
    outcomes = await fires(node, "ticks", 4)
    times = [datetime.fromisoformat(json.loads(outcome.data)[0]).timestamp() for outcome in outcomes]

    assert [end(outcome) for outcome in outcomes] == [("succeeded", "")] * 4
    assert times == [times[0] + second for second in range(4)]
    assert len({head(outcome)["Faas-Invocation"] for outcome in outcomes}) == 4


async def test_the_event_of_a_fire_says_which_schedule_it_was_and_when(node: Node) -> None:
    """Its identity is scheduler and time, so it is the same invocation whichever node armed it, and any program can work it out."""
    (outcome,) = await fires(node, "ticks", 1)
    id, source, kind, subject, time, extensions, data, invocation = json.loads(outcome.data)

    assert head(outcome)["Faas-Event-Id"] == id == time.replace("+00:00", "Z")
    assert (source, kind, subject, data) == ("/faas/default/ticks/schedule/0", "faas.schedule", "* * * * * *", {})
    assert extensions == {"timezone": "UTC"}
    assert invocation == invocation_id("default", "ticks", source=source, event_id=id)


async def test_a_deploy_a_roll_back_and_a_removal_change_what_is_armed(node: Node, tmp_path: Path) -> None:
    """A schedule is the version's: nothing of another version may fire."""
    seen = []
    for depth in (1, 2):
        write_function(tmp_path, "yearly", EVENT, YEARLY.format(depth=depth))
        await deploy(node, tmp_path)
        seen.append(await armed(node, "yearly", with_depth(depth)))
    await faas(node, "rollback", "yearly")
    seen.append(await armed(node, "yearly", with_depth(1)))
    write_function(tmp_path, "yearly", EVENT)
    await deploy(node, tmp_path)
    seen.append(await armed(node, "yearly", lambda waiting: waiting is None))
    await faas(node, "rollback", "yearly")
    seen.append(await armed(node, "yearly"))
    await faas(node, "functions", "remove", "yearly")
    await armed(node, "yearly", lambda waiting: waiting is None)

    (year,) = {datetime.fromisoformat(waiting[0]["Nats-Schedule"].removeprefix("@at ")).year for waiting in seen if waiting}
    moment = f"{year}-01-01T02:30:00Z"  # an hour before the wall clock of Berlin
    assert [waiting and (waiting[0]["Nats-Schedule"], waiting[1]) for waiting in seen] == [
        (f"@at {moment}", {"mode": "full", "depth": 1}),
        (f"@at {moment}", {"mode": "full", "depth": 2}),
        (f"@at {moment}", {"mode": "full", "depth": 1}),
        None,
        (f"@at {moment}", {"mode": "full", "depth": 1}),
    ]


async def test_the_next_fire_times_are_told_without_asking_a_node(node: Node, tmp_path: Path) -> None:
    """In the zone of each schedule for people, in UTC for programs; a deploy says them too."""
    write_function(tmp_path, "listed", EVENT, YEARLY.format(depth=1) + SECONDLY)
    code, told, err = await command("deploy", str(tmp_path), "--nats", node.info["nats"])
    assert (code, err) == (0, "")
    await armed(node, "listed", number=1)
    rows = [row for row in await faas(node, "schedules") if row["function"] == "listed"]
    _, table, _ = await command("schedules", "--nats", node.info["nats"])
    await faas(node, "functions", "remove", "listed")

    yearly, secondly = rows
    assert {key: yearly[key] for key in ("tenant", "number", "schedule", "timezone", "armed")} == {
        "tenant": "default", "number": 0, "schedule": "30 3 1 1 *", "timezone": "Europe/Berlin", "armed": True,
    }  # fmt: skip
    first = datetime.fromisoformat(yearly["next"][0])
    assert yearly["next"] == [f"{first.year + years}-01-01T02:30:00Z" for years in range(3)]
    assert (secondly["number"], secondly["timezone"], len(secondly["next"])) == (1, "UTC", 3)
    assert f"{first.year}-01-01T03:30:00+01:00" in table
    assert f"  30 3 1 1 *: next at {first.year}-01-01T03:30:00+01:00" in told


async def test_a_schedule_that_cannot_be_due_makes_its_function_invalid(node: Node, tmp_path: Path) -> None:
    """Said where it is deployed, with file and key, and nothing else is held up."""
    write_function(tmp_path, "never", EVENT, '[[trigger]]\nschedule = "0 0 30 2 *"\n')
    code, _, err = await command("deploy", str(tmp_path), "--nats", node.info["nats"])

    assert code == 1
    assert "never/function.toml: line 2: trigger[0].schedule: '0 0 30 2 *': bad day-of-month" in err


async def test_while_one_runs_the_next_waits_for_its_turn_and_no_longer_than_it_may(node: Node, tmp_path: Path) -> None:
    """Fires are events: they queue behind `max_workers`, and end as `expired` where they are older than `queue_timeout`."""
    slow = "import time\ndef handle(event):\n    time.sleep(2.5)\n"
    write_function(tmp_path, "slow", slow, f'{SECONDLY}[scale]\nmax_workers = 1\n[limits]\nqueue_timeout = "1500ms"\n')
    await deploy(node, tmp_path)
    ends = [end(outcome) for outcome in await fires(node, "slow", 5)]
    await faas(node, "functions", "remove", "slow", "--purge")

    assert set(ends) == {("succeeded", ""), ("expired", "queue_timeout")}
