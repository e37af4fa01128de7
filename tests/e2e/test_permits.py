"""Who is given events when: each function shows its head, and the queue stays in the stream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from nats.aio.msg import Msg
from node import Node, echoing, end, running, write_function

SLOTS = 4
SAMPLES = 50
"""Once every slot is taken; some milliseconds each, and each of them lets a node that takes too much show it."""
GATED = """
import time
from pathlib import Path
def handle(event: str):
    time.sleep(0.2)  # long enough that nothing is asked for ahead of a slot
    while not Path(event).exists():
        time.sleep(0.02)
"""
NAMES = ["one", "two", "three"]


async def asked(node: Node) -> list[int]:
    """How many events each pull of the node asks for, from now on."""
    batches: list[int] = []

    async def take(message: Msg) -> None:
        batches.append(json.loads(message.data)["batch"])

    await node.client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=take)
    await node.client.jetstream().account_info()  # a fence: the subscription is there
    return batches


async def test_a_function_with_nothing_waiting_asks_for_one_event_at_a_time(tmp_path: Path) -> None:
    """Whoever asks for more takes them from a node that could start them."""
    async with echoing(tmp_path) as node:
        batches = await asked(node)
        for number in range(10):
            assert end(await node.event("life.echo", b"1", id=f"event-{number}")) == ("succeeded", "")

    assert batches
    assert set(batches) == {1}


async def test_floods_of_several_functions_take_no_more_than_slots_and_a_head_or_two_each(tmp_path: Path) -> None:
    """All of them see the same free slots; what each takes for them is what the others may not."""
    for name in NAMES:
        spec = f'[[trigger]]\nsubject = "permits.{name}"\n[scale]\nmax_workers = 8\n'
        write_function(tmp_path / "functions", name, GATED, spec)
    environ = {"FAAS_POOL__SLOTS": str(SLOTS)}
    async with running(tmp_path / "functions", tmp_path / "state", environ=environ) as node:
        await node.watch()
        stream = node.client.jetstream()
        gate, opened = tmp_path / "gate", tmp_path
        for name in NAMES:
            await node.event(f"permits.{name}", str(opened).encode(), id=f"warm-{name}")
        body = str(gate).encode()
        floods = [stream.publish_async(f"permits.{name}", body, headers={"Nats-Msg-Id": f"{name}-{n}"}) for n in range(4) for name in NAMES]
        for acknowledged in await asyncio.gather(*floods):
            await acknowledged
        held: list[int] = []
        while len([count for count in held if count >= SLOTS]) < SAMPLES:
            held.append(sum(consumer.num_ack_pending or 0 for consumer in await stream.consumers_info("FAAS_EVENTS")))
        gate.touch()
        for name in NAMES:
            assert end(await node.outcome(f"{name}-3")) == ("succeeded", "")

    # What the first to show its head asked for, before the others showed theirs and took slots, waits here too.
    assert max(held) <= SLOTS + 2 * (len(NAMES) - 1)
