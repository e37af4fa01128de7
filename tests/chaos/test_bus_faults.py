"""Consumers that fall behind, and streams and consumers that an administrator deletes: F24 and F29. Seeded, and bounded in time."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError
from node import ECHO, SHORT_LEASE, Node, echoing, end, running, write_function

SEED = 24
BEHIND = 1000
SLEEPER = "import time\ndef handle(event: bytes):\n    time.sleep(0.2)\n    return len(event)\n"
SLOW = '[[trigger]]\nsubject = "chaos.slow"\n[scale]\nmax_workers = 2\n'

STREAMS = ["FAAS_SCHEDULES", "FAAS_EVENTS", "FAAS_OUTCOMES", "FAAS_USAGE", "FAAS_DEAD", "FAAS_LOGS", "KV_FAAS_CANCELLED"]

pytestmark = pytest.mark.timeout(60)


async def counted(node: Node, subject: str) -> list[str]:
    """Subjects of the messages under a subject from now on."""
    seen: list[str] = []

    async def take(message: Msg) -> None:
        seen.append(message.subject)

    await node.client.subscribe(subject, cb=take)
    await node.client.jetstream().account_info()  # a fence: the subscription is there
    return seen


async def its_consumer(node: Node, function: str) -> str:
    found = await node.client.jetstream().consumers_info("FAAS_EVENTS")
    (name,) = [consumer.name for consumer in found if consumer.name.startswith(f"default-{function}-")]
    return name


async def test_f24_a_function_that_falls_behind_leaves_its_events_in_the_stream(tmp_path: Path) -> None:
    """Taken without a bound they would fill the node's memory, and the server would cut a client that does not read."""
    write_function(tmp_path / "functions", "slow", SLEEPER, SLOW)
    write_function(tmp_path / "functions", "echo", ECHO, '[[trigger]]\nsubject = "chaos.echo"\n')
    draw = random.Random(SEED)
    async with running(tmp_path / "functions", tmp_path / "state", environ=SHORT_LEASE) as node:
        await node.watch()
        stream = node.client.jetstream(publish_async_max_pending=BEHIND)
        acks = [await stream.publish_async("chaos.slow", draw.randbytes(draw.randint(1, 40_000))) for _ in range(BEHIND)]
        await asyncio.gather(*acks)
        assert end(await node.event("chaos.echo", b"7", id="beside")) == ("succeeded", "")
        info = await stream.consumer_info("FAAS_EVENTS", await its_consumer(node, "slow"))
        log = (node.state / "node.log").read_text()

    assert info.num_ack_pending is not None
    assert info.num_ack_pending <= 16
    assert "bus.error" not in log
    assert "SlowConsumer" not in log


async def test_f29_a_consumer_that_was_deleted_is_made_again_and_loses_nothing(tmp_path: Path) -> None:
    """What was waiting is delivered again, what is settled is not run twice, and nobody hammers the server meanwhile."""
    async with echoing(tmp_path) as node:
        for number in range(5):
            await node.event("life.echo", b"1", id=f"before-{number}")
        pulls = await counted(node, "$JS.API.CONSUMER.MSG.NEXT.FAAS_EVENTS.>")
        made = await counted(node, "$JS.EVENT.ADVISORY.CONSUMER.CREATED.FAAS_EVENTS.>")
        await node.client.jetstream().delete_consumer("FAAS_EVENTS", await its_consumer(node, "echo"))
        ends = [end(await node.event("life.echo", b"2", id=f"after-{number}", wait_s=20)) for number in range(5)]
        records = await node.count("FAAS_OUTCOMES", "faas.outcome.default.echo.*")

    assert ends == [("succeeded", "")] * 5
    assert [len(found) for found in node.outcomes.values()] == [1] * 10
    assert records == 10
    assert len(made) == 1
    assert len(pulls) < 50


GATED = """import os, time
def handle(event: str):
    with open(os.path.join({folder!r}, "ran"), "a") as file:
        file.write(event + "\\n")
    while event == "waits" and not os.path.exists(os.path.join({folder!r}, "gate")):
        time.sleep(0.01)
"""


async def test_f29_what_has_ended_is_not_run_again_by_a_consumer_that_was_made_again(tmp_path: Path) -> None:
    """It begins behind the oldest event that has not ended, and delivers those behind it as if for the first time, without ids of their own."""
    write_function(tmp_path / "functions", "gated", GATED.format(folder=str(tmp_path)), '[[trigger]]\nsubject = "chaos.gated"\n')
    async with running(tmp_path / "functions", tmp_path / "state", "--environments", "current", environ=SHORT_LEASE) as node:
        await node.watch()
        stream = node.client.jetstream()
        for number in range(6):
            await stream.publish("chaos.gated", b"%d" % number if number else b"waits")
        async with asyncio.timeout(8), node.arrived:
            await node.arrived.wait_for(lambda: len(node.outcomes) == 5)
        await stream.delete_consumer("FAAS_EVENTS", await its_consumer(node, "gated"))
        await stream.publish("chaos.gated", b"last", headers={"Nats-Msg-Id": "last"})
        await node.outcome("last", 20)
        (tmp_path / "gate").touch()
        async with asyncio.timeout(8), node.arrived:
            await node.arrived.wait_for(lambda: len(node.outcomes) == 7)
        while (await stream.consumer_info("FAAS_EVENTS", await its_consumer(node, "gated"))).num_ack_pending:
            pass

    assert sorted((tmp_path / "ran").read_text().split()) == ["1", "2", "3", "4", "5", "last", "waits"]


@pytest.mark.parametrize("stream", STREAMS)
async def test_f29_a_stream_that_was_deleted_is_declared_again_while_the_node_runs(tmp_path: Path, stream: str) -> None:
    """What was in it is lost by the hand of an administrator; what is accepted from then on has its outcome, from sequence 1 on."""
    async with echoing(tmp_path) as node:
        for number in range(5):
            await node.event("life.echo", b"1", id=f"before-{number}")
        pulls = await counted(node, "$JS.API.CONSUMER.MSG.NEXT.FAAS_EVENTS.>")
        await node.client.jetstream().delete_stream(stream)
        async with asyncio.timeout(10):
            while not await there(node, stream):
                pass
        for number in range(3):
            assert end(await node.event("life.echo", b"2", id=f"after-{number}", wait_s=20)) == ("succeeded", "")
        invocation = (await node.outcome("after-0")).headers or {}
        assert len(await node.records("echo", invocation["Faas-Invocation"])) == 1

    assert len(pulls) < 50


async def there(node: Node, stream: str) -> bool:
    try:
        await node.client.jetstream().stream_info(stream)
    except NotFoundError:
        return False
    return True
