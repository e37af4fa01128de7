"""The pull loop on a real server: credit, renewal, leases, and what a delivery may still say once it is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from pulling import CONFIG, STORE_BYTES, Deliveries, a_function

from faas import subjects
from faas.bus import consumers, streams
from faas.bus.connection import Bus, Message, encode_head
from faas.bus.consumers import Consumer
from faas.bus.pull import Delivery, Heartbeats, Puller
from faas.bus.server import EmbeddedServer


async def publish(bus: Bus, consumer: Consumer, *bodies: bytes) -> None:
    assert consumer.config is not None
    subject = next(subject for subject in consumer.config.filter_subjects if subject.endswith(".in"))
    for body in bodies:
        await bus.store(subject, body)


async def state(bus: Bus, consumer: Consumer) -> tuple[int, int]:
    """(waiting for a pull, delivered and not acknowledged), by the server's count."""
    seen = await bus.api(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}", None, dict)
    return seen["num_pending"], seen["num_ack_pending"]


async def words(bus: Bus, delivery: Delivery) -> list[bytes]:
    """Everything that is said about a delivery from now on."""
    said: list[bytes] = []
    await bus.subscribe(delivery.reply, lambda message: said.append(message.data))
    await bus.fence()
    return said


async def test_a_delivery_carries_its_place_in_the_stream(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """Its identity, its age and its attempt are made of these."""
    before = time.time()
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await publish(bus, consumer, b"one", b"two")
    delivery = await deliveries.next()

    assert (delivery.data, delivery.stream, delivery.consumer) == (b"one", subjects.EVENTS, consumer.name)
    assert (delivery.num_delivered, delivery.sequence) == (1, consumer.floor + 1)
    assert before - 1 < delivery.stored_at < time.time() + 1
    assert delivery.stored_at_ns == pytest.approx(delivery.stored_at * 1e9, abs=1000)
    await puller.stop()


async def test_credit_is_never_exceeded(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """One flood may not fill the node: what is not asked for stays in the stream, for another node to take."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    await publish(bus, consumer, *(b"%d" % n for n in range(20)))
    for wanted, left in ((3, 17), (2, 15), (5, 10)):
        puller.want(wanted)
        puller.want(wanted)
        for _ in range(wanted):
            await (await deliveries.next()).ack_sync()

        assert await state(bus, consumer) == (left, 0)
    assert deliveries.waiting == 0
    await puller.stop()


async def test_a_parked_pull_gets_what_comes_later(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """No polling: the server answers when there is something."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(2)
    await bus.fence()
    await publish(bus, consumer, b"one", b"two")

    assert [(await deliveries.next()).data for _ in range(2)] == [b"one", b"two"]
    await puller.stop()


async def test_an_expired_pull_is_renewed_without_a_pause(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """408 is the ordinary end of a quiet minute, no fault to back off from."""
    monkeypatch.setattr("faas.bus.pull.EXPIRES_S", 0.2)
    monkeypatch.setattr("faas.bus.pull.HEARTBEAT_S", 0.05)
    pulls = asyncio.Semaphore(0)
    await bus.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}", lambda _message: pulls.release())
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(3)
    for _ in range(3):
        await pulls.acquire()
    await publish(bus, consumer, *(b"%d" % n for n in range(10)))
    for _ in range(3):
        await deliveries.next()
    await bus.fence()

    assert deliveries.waiting == 0
    await puller.stop()


async def test_an_event_with_a_status_header_is_an_event(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup, tenant: str
) -> None:
    """A publisher may write `Status: 409`; taken for the end of a pull it would never be delivered, and come again for ever."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(3)
    for status in ("100", "408", "503"):
        await bus.store(f"{tenant}.in", b"", head=encode_head([("Status", status), ("Nats-Pending-Messages", "x")]))

    assert [(await deliveries.next()).headers["Status"] for _ in range(3)] == ["100", "408", "503"]  # type: ignore[index]
    await puller.stop()


async def test_a_nak_brings_it_again(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """At shutdown another node has it at once, and a retry after its back-off."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(3)
    await publish(bus, consumer, b"one")
    first = await deliveries.next()
    await first.nak()
    second = await deliveries.next()
    asked = time.monotonic()
    await second.nak(0.3)
    third = await deliveries.next()

    assert [first.num_delivered, second.num_delivered, third.num_delivered] == [1, 2, 3]
    assert time.monotonic() - asked >= 0.3
    await puller.stop()


async def test_a_terminated_event_never_comes_again(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """An undecodable event would fail the same way each time; the server's advisory carries the reason."""
    advisories: asyncio.Queue[Message] = asyncio.Queue()
    await bus.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{consumer.stream}.{consumer.name}", advisories.put_nowait)
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(2)
    await publish(bus, consumer, b"one")
    await (await deliveries.next()).term("event_invalid: no\r\nspecversion")
    async with asyncio.timeout(5):
        advisory = await advisories.get()

    assert b"event_invalid: no specversion" in advisory.data
    assert await state(bus, consumer) == (0, 0)
    await puller.stop()


async def test_stopping_hands_on_what_was_on_its_way(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """What the server counts as delivered must reach somebody who gives it back; else it rests for ack_wait."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(100)
    await publish(bus, consumer, *(b"%d" % n for n in range(20)))
    async with asyncio.timeout(5):
        while await state(bus, consumer) != (0, 20):
            pass  # each question is a round trip
    await puller.stop()
    await publish(bus, consumer, b"late")

    assert deliveries.waiting == 20
    assert await state(bus, consumer) == (1, 20)


# ---------------------------------------------------------------- leases


async def test_a_lost_delivery_says_nothing_more(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """A late nak of a zombie starts a third delivery while the second runs; a late sign of life holds another node's lease."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await publish(bus, consumer, b"one")
    delivery = await deliveries.next()
    said = await words(bus, delivery)
    lost: list[bool] = []
    frozen = Heartbeats(CONFIG.ack_wait_s, clock=lambda: time.monotonic() + CONFIG.ack_wait_s + 1)
    frozen.add(delivery, lambda: lost.append(True))
    frozen.tick(group)
    frozen.tick(group)
    await delivery.ack()
    await delivery.ack_sync()
    await delivery.nak()
    await delivery.term("no")
    await bus.fence()

    assert lost == [True]
    assert delivery.lost
    assert said == []
    await puller.stop()


async def test_a_held_delivery_is_not_redelivered(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """A run longer than ack_wait is the normal case, queued or running."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(2)
    await publish(bus, consumer, b"one")
    delivery = await deliveries.next()
    lost: list[bool] = []
    async with Heartbeats.open(CONFIG.ack_wait_s) as heartbeats:
        heartbeats.add(delivery, lambda: lost.append(True))
        with pytest.raises(TimeoutError):
            await deliveries.next(within_s=1.6 * CONFIG.ack_wait_s)
        heartbeats.discard(delivery)
    again = await deliveries.next()

    assert lost == []
    assert again.num_delivered == 2
    await puller.stop()


async def test_a_sign_of_life_counts_only_where_it_can_arrive(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """Cut off from the bus for longer than ack_wait, another node has it: this one must stop, whatever it sent into the void."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await publish(bus, consumer, b"one")
    delivery = await deliveries.next()
    now = time.monotonic()
    heartbeats, lost = Heartbeats(CONFIG.ack_wait_s, clock=lambda: now), []
    heartbeats.add(delivery, lambda: lost.append(True))
    assert bus._client is not None
    await bus._client.close()
    for _ in range(4):
        now += CONFIG.ack_wait_s / 3
        heartbeats.tick(group)

    assert lost == [True]
    await puller.stop()


async def test_a_sign_of_life_that_nobody_confirms_holds_nothing(
    tmp_path: Path, tenant: str, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """Behind a cut cable, or a server that hangs, a connection looks whole for a quarter of a minute: the node must stop before another has begun."""
    spec = a_function(tenant, "f", f"{tenant}.in")
    async with (
        EmbeddedServer.open(CONFIG, state=tmp_path, host="127.0.0.1", port=0, token="t") as server,
        Bus.open(server.url, node="n") as bus,
    ):
        await streams.declare(bus, [spec], CONFIG, store_bytes=STORE_BYTES)
        consumer = (await consumers.ensure_consumers(bus, [spec], CONFIG))[spec.tenant, spec.name][0]
        puller = await Puller.start(bus, consumer, deliveries, group=group)
        puller.want(1)
        await publish(bus, consumer, b"one")
        delivery = await deliveries.next()
        lost = asyncio.Event()
        async with Heartbeats.open(CONFIG.ack_wait_s) as heartbeats:
            heartbeats.add(delivery, lost.set)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(4 * CONFIG.ack_wait_s):
                    await lost.wait()
                connected = bus.connected
            finally:
                os.kill(server.pid, signal.SIGCONT)
        await puller.stop()

    assert connected
    assert delivery.lost


# ---------------------------------------------------------------- faults


async def test_a_deleted_consumer_is_made_again_and_loses_nothing(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """An operator's slip: what was settled stays settled, and what waits is delivered."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await publish(bus, consumer, b"settled", b"waits")
    await (await deliveries.next()).ack_sync()
    await bus.api(f"CONSUMER.DELETE.{consumer.stream}.{consumer.name}", None, dict)
    await publish(bus, consumer, b"came meanwhile")
    puller.want(2)

    assert [(await deliveries.next()).data for _ in range(2)] == [b"waits", b"came meanwhile"]
    await puller.stop()


async def test_a_pull_that_hears_nothing_is_asked_again_and_its_consumer_looked_for(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where somebody listens on the API besides the server, a missing consumer is not answered by 503 but by silence."""
    monkeypatch.setattr("faas.bus.pull.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("faas.bus.pull.HEARTBEAT_SLACK_S", 0.0)
    await bus.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", lambda _message: None)
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    await bus.api(f"CONSUMER.DELETE.{consumer.stream}.{consumer.name}", None, dict)
    await publish(bus, consumer, b"waits")
    puller.want(1)

    assert (await deliveries.next()).data == b"waits"
    await puller.stop()


async def test_an_unsettled_delivery_of_a_deleted_consumer_comes_again(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """The new consumer starts behind the oldest one that has no end; the outcome guard absorbs repeats."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(2)
    await publish(bus, consumer, b"runs", b"settled")
    await deliveries.next()
    await (await deliveries.next()).ack_sync()
    puller.want(1)
    await bus.fence()
    await bus.api(f"CONSUMER.DELETE.{consumer.stream}.{consumer.name}", None, dict)

    assert (await deliveries.next()).data == b"runs"
    await puller.stop()


async def test_a_consumer_that_only_drains_is_not_made_again(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """It belongs to a filter that is gone; asking for it for ever would be noise."""
    draining = Consumer(stream=consumer.stream, name=consumer.name, ack_wait_s=consumer.ack_wait_s)
    puller = await Puller.start(bus, draining, deliveries, group=group)
    await bus.api(f"CONSUMER.DELETE.{consumer.stream}.{consumer.name}", None, dict)
    puller.want(1)
    async with asyncio.timeout(5):
        while not puller.drained:
            await bus.fence()
    await puller.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_pulls_resume_after_the_server_was_started_again(
    tmp_path: Path, tenant: str, deliveries: Deliveries, how: signal.Signals
) -> None:
    """A pending fetch of nats-py would stall for its whole timeout. Nothing accepted is lost.

    After a kill what was settled in the last moments may come again, `ack_sync` or not: the server writes a consumer's
    state after it has answered. The outcome guard absorbs that.
    """
    spec = a_function(tenant, "f", f"{tenant}.in")
    async with (
        EmbeddedServer.open(CONFIG, state=tmp_path, host="127.0.0.1", port=0, token="t") as server,
        Bus.open(server.url, node="n") as bus,
        asyncio.TaskGroup() as group,
    ):
        await streams.declare(bus, [spec], CONFIG, store_bytes=STORE_BYTES)
        consumer = (await consumers.ensure_consumers(bus, [spec], CONFIG))[tenant, "f"][0]
        puller = await Puller.start(bus, consumer, deliveries, group=group)
        puller.want(1)
        await publish(bus, consumer, b"settled")
        await (await deliveries.next()).ack_sync()
        await publish(bus, consumer, b"waits")
        back = asyncio.Event()
        bus.on_reconnect.append(back.set)
        os.kill(server.pid, how)
        async with asyncio.timeout(8):
            await back.wait()
        puller.want(1)
        delivery = await deliveries.next()
        await delivery.ack_sync()

        assert delivery.data == b"waits"
        assert await state(bus, consumer) == (0, 0) or how is signal.SIGKILL
        await puller.stop()


async def test_a_replaced_client_pulls_again(bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup) -> None:
    """The watchdog's new client knows nothing of what the old one had asked for."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    back = asyncio.Event()
    bus.on_reconnect.append(back.set)
    assert bus._client is not None
    await bus._client.close()
    async with asyncio.timeout(8):
        await back.wait()
    await publish(bus, consumer, b"one")

    assert (await deliveries.next()).data == b"one"
    await puller.stop()


async def test_many_waiting_pulls_beyond_the_servers_limit_recover(
    bus: Bus, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """409 Exceeded MaxWaiting refuses one pull alone; counting all as ended would ask for them twice."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    wanted = consumers.PULLS_WAITING + 20
    for n in range(1, wanted + 1):
        puller.want(n)
    await bus.fence()
    await publish(bus, consumer, *(b"%d" % n for n in range(10)))
    for _ in range(10):
        await deliveries.next()

    assert puller.asked <= wanted
    await puller.stop()
