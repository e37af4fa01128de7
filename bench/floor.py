"""The floors of dispatch.py and webhook.py: the same exchange as a node's, by a bare process on uvloop and nothing else.

`floor.py responder URL` answers requests with a constant; `floor.py durable URL` pulls events, publishes an outcome for
each and acknowledges it once that is stored; `floor.py webhooks URL FILE` verifies webhooks with the library of Standard Webhooks, stores
them, and answers 202, at the address that it writes to FILE. No spec, no worker, no usage: what the bus and the libraries alone cost.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from functools import partial
from pathlib import Path

import nats
import uvloop
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

REQUESTS = "floor.request"
EVENTS, OUTCOMES = "FLOOR_EVENTS", "FLOOR_OUTCOMES"
EVENT, OUTCOME = "floor.event", "floor.outcome"
HOOKS, HOOK = "FLOOR_HOOKS", "floor.hook"
SECRET = "whsec_" + base64.b64encode(b"thirty-two bytes of no interest!").decode()
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


async def webhooks(url: str, file: str) -> None:
    """aiohttp, the library's own check, one awaited publish with the delivery's id, 202."""
    from aiohttp import web
    from standardwebhooks import Webhook, WebhookVerificationError

    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name=HOOKS, subjects=[HOOK], max_msgs=500_000))
    secret = Webhook(SECRET)

    async def receive(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        try:
            secret.verify(body, dict(request.headers), json_parse=False)
        except WebhookVerificationError as error:
            return web.Response(status=401, text=str(error))
        await stream.publish(HOOK, body, headers={"Nats-Msg-Id": request.headers["webhook-id"]})
        return web.json_response({"event": request.headers["webhook-id"], "invocations": []}, status=202)

    runner = web.ServerRunner(web.Server(receive, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await asyncio.to_thread(Path(file).write_text, f"http://127.0.0.1:{runner.addresses[0][1]}")
    await _ready()


async def _ready() -> None:
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run({"responder": responder, "durable": durable, "webhooks": webhooks}[sys.argv[1]](*sys.argv[2:]))
