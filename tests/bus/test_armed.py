"""Armed schedules on a real server: one message for each, swapped by compare-and-swap, and what it fires."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from pulling import CONFIG, STORE_BYTES, Deliveries, a_function

from faas import subjects
from faas.admission import of_delivery
from faas.bus import consumers, streams
from faas.bus.armed import Armed, ArmedSchedules, Slot, View
from faas.bus.connection import Bus
from faas.bus.pull import Puller
from faas.errors import AlreadyStored
from faas.identity import invocation_id
from faas.invocation import Invocation
from faas.model import FunctionSpec, FunctionVersion
from faas.security.tenants import Tenants
from faas.triggers import Trigger

YEARLY = Trigger(schedule="0 3 1 1 *", timezone="Europe/Berlin", payload={"text": "é\r\n"})
FAR = 4_000_000_000.0
VIEW = View("2026-11-24T15:41:41.09Z", 12)


@pytest.fixture
async def schedules(bus: Bus, tenant: str) -> AsyncIterator[ArmedSchedules]:
    """With the streams that it needs; what a test leaves is taken away."""
    await streams.declare(bus, [a_function(tenant, "f")], CONFIG, store_bytes=STORE_BYTES)
    schedules = ArmedSchedules(bus)
    yield schedules
    for waiting in await of(schedules, tenant):
        await schedules.disarm(waiting)


async def of(schedules: ArmedSchedules, tenant: str) -> list[Armed]:
    return [waiting for slot, waiting in sorted((await schedules.all()).items()) if slot.tenant == tenant]


async def test_what_is_armed_reads_back_as_what_was_meant(schedules: ArmedSchedules, tenant: str) -> None:
    """Nodes decide by it whether there is anything to do."""
    slot = Slot(tenant, "f", 0)
    await schedules.arm(slot, YEARLY, FAR, then=None, view=VIEW)
    (waiting,) = await of(schedules, tenant)

    assert (waiting.slot, waiting.at, waiting.view) == (slot, FAR, VIEW)
    assert waiting.is_of(YEARLY)
    assert waiting == await schedules.find(slot)


async def test_of_many_that_arm_one_schedule_one_wins(schedules: ArmedSchedules, tenant: str) -> None:
    """No leader is elected: each node tries, and the server takes one."""
    slot = Slot(tenant, "f", 0)
    tries = [schedules.arm(slot, YEARLY, FAR + number, then=None, view=VIEW) for number in range(8)]
    ended = await asyncio.gather(*tries, return_exceptions=True)

    assert sorted(type(one).__name__ for one in ended) == [*["AlreadyStored"] * 7, "NoneType"]
    assert len(await of(schedules, tenant)) == 1


async def test_another_is_armed_instead_only_of_the_one_that_was_seen(schedules: ArmedSchedules, tenant: str) -> None:
    """Two deploys in one moment: the one that read before the other wrote must not win."""
    slot = Slot(tenant, "f", 0)
    await schedules.arm(slot, YEARLY, FAR, then=None, view=VIEW)
    (seen,) = await of(schedules, tenant)
    await schedules.arm(slot, YEARLY, FAR + 1, then=None, view=VIEW, instead_of=seen.sequence)
    with pytest.raises(AlreadyStored):
        await schedules.arm(slot, YEARLY, FAR + 2, then=None, view=VIEW, instead_of=seen.sequence)
    await schedules.disarm(seen)  # what stands there now is another

    assert [waiting.at for waiting in await of(schedules, tenant)] == [FAR + 1]


@pytest.mark.parametrize(("then", "ttl"), [(1.0, "60s"), (300.0, "300s"), (86_400.0 * 365, "86400s"), (math.inf, "86400s")])
async def test_what_fires_waits_for_room_until_the_next_is_due(
    bus: Bus, schedules: ArmedSchedules, tenant: str, then: float, ttl: str
) -> None:
    """Where events are refused for hours, one of them is there when there is room, and not one for each time that has passed."""
    slot = Slot(tenant, "f", 0)
    await schedules.arm(slot, YEARLY, FAR, then=FAR + then if then < math.inf else None, view=VIEW)
    message = await bus.last_stored(subjects.SCHEDULES, subjects.schedule(*slot))

    assert message is not None
    assert message.headers["Nats-Schedule-TTL"] == ttl


async def test_a_fire_is_the_invocation_of_its_schedule_and_time(
    bus: Bus, schedules: ArmedSchedules, tenant: str, deliveries: Deliveries, group: asyncio.TaskGroup
) -> None:
    """Late or not, whoever armed it, and its age counts from its time."""
    spec = FunctionSpec(name="f", tenant=tenant)
    consumer = (await consumers.ensure_consumers(bus, [spec], CONFIG))[tenant, "f"][0]
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    at = float(int(bus.now()) - 600)
    await schedules.arm(Slot(tenant, "f", 3), YEARLY, at, then=None, view=VIEW)
    delivery = await deliveries.next()
    await puller.stop()
    invocation = of_delivery(delivery, FunctionVersion(spec=spec, version="v", files=()), now=bus.now(), tenants=Tenants())

    assert isinstance(invocation, Invocation)
    event = invocation.event
    assert (event.type, event.subject, event.data) == ("faas.schedule", "0 3 1 1 *", YEARLY.body)
    assert (event.source, event.extensions) == (f"/faas/{tenant}/f/schedule/3", {"timezone": "Europe/Berlin"})
    assert event.id == event.time
    assert invocation.id == invocation_id(tenant, "f", source=event.source, event_id=event.id)
    assert 599e6 < invocation.waited_us < 660e6
    assert await schedules.find(Slot(tenant, "f", 3)) is None
