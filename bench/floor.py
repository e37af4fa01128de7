"""The floors of dispatch.py: the same exchange of messages as a node's, by a bare nats-py + uvloop process and nothing else.

`floor.py responder URL` answers requests with a constant; `floor.py durable URL` pulls events, publishes an outcome for
each and acknowledges it once that is stored. No spec, no worker, no usage: what the bus alone costs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

import nats
import uvloop
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

REQUESTS = "floor.request"
EVENTS, OUTCOMES = "FLOOR_EVENTS", "FLOOR_OUTCOMES"
EVENT, OUTCOME = "floor.event", "floor.outcome"
ANSWER = b'{"text":"Hello, Ada!","invocation_id":"abcdefghijklmnopqrstuvwxyz","attempt":1}'
"""As long as what `hello` returns."""

CONSUMER = "floor"
PULL_BATCH = 256
"""Events asked for at once; the next are asked for when half of them have come, so that the server never waits for a pull."""


async def responder(url: str) -> None:
    """Answer each request with a constant, without headers."""
    client = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await client.publish(message.reply, ANSWER)

    await client.subscribe(REQUESTS, queue="floor", cb=answer)
    await client.flush()
    await _ready()


async def durable(url: str) -> None:
    """Pull, publish the outcome, acknowledge when it is stored; pulls and acknowledgements raw, as NATS.md's figures are."""
    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=4000)
    # Limits and files, as a node's streams are, but without `max_bytes`: the server would set the space aside.
    for name, subject in ((EVENTS, EVENT), (OUTCOMES, f"{OUTCOME}.*")):
        await stream.add_stream(StreamConfig(name=name, subjects=[subject], max_msgs=500_000))
    await stream.add_consumer(EVENTS, ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=4000))
    inbox = client.new_inbox()
    pull = partial(
        client.publish, f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{CONSUMER}", json.dumps({"batch": PULL_BATCH // 2}).encode(), reply=inbox
    )
    came = 0

    async def take(message: Msg) -> None:
        nonlocal came
        if not message.reply:
            return  # a status of the server, not an event
        came += 1
        if came % (PULL_BATCH // 2) == 0:
            await pull()
        sequence = message.reply.split(".")[5]  # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>...
        stored = await stream.publish_async(f"{OUTCOME}.{sequence}", ANSWER)
        stored.add_done_callback(lambda _: acknowledge(message.reply))

    def acknowledge(reply: str) -> None:
        tasks.create_task(client.publish(reply, b"+ACK"))

    async with asyncio.TaskGroup() as tasks:
        await client.subscribe(inbox, cb=take)
        await pull()
        await pull()
        await client.flush()
        await _ready()


async def _ready() -> None:
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run({"responder": responder, "durable": durable}[sys.argv[1]](sys.argv[2]))
