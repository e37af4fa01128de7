"""How many back-offs wait outside their deliveries: bounded, by those that wait."""

from __future__ import annotations

import time

from pulling import CONFIG, STORE_BYTES, a_function

from faas.bus import streams
from faas.bus.connection import Bus
from faas.bus.replay import count
from faas.bus.schedules import Schedules
from faas.model import Due

LATER_S = 3600


async def waiting(bus: Bus, tenant: str) -> int:
    """Back-offs that wait now, of anybody: the server is shared with other tests."""
    await streams.declare(bus, [a_function(tenant, "f", f"{tenant}.in")], CONFIG, store_bytes=STORE_BYTES)
    return await count(bus, "FAAS_SCHEDULES", "faas.retry.>")


async def retried(schedules: Schedules, tenant: str, invocation: str) -> bool:
    due = Due(
        invocation=invocation,
        first_seen=time.time(),
        event_id="e",
        source="s",
        subject=f"{tenant}.in",
        message_id="",
        redrive_of="",
        attempt=1,
    )
    return await schedules.retry(tenant, "f", due, at=time.time() + LATER_S, headers=(), body=b"")


async def test_what_has_fired_takes_no_place_of_what_waits(bus: Bus, tenant: str) -> None:
    """It stays for an hour: thirty retries a second would close the schedules, and what is held instead stops a function at a thousand."""
    schedules = Schedules(bus, limit=await waiting(bus, tenant) + 1)
    for _ in range(3):
        await bus.store(f"faas.due.{tenant}.f", b"fired")

    assert await retried(schedules, tenant, "a" * 26)
    assert await count(bus, "FAAS_SCHEDULES", f"faas.retry.{tenant}.f.*") == 1


async def test_beyond_the_limit_deliveries_are_held_instead(bus: Bus, tenant: str) -> None:
    """Each one that waits costs the server memory."""
    schedules = Schedules(bus, limit=await waiting(bus, tenant))

    assert not await retried(schedules, tenant, "b" * 26)
    assert await count(bus, "FAAS_SCHEDULES", f"faas.retry.{tenant}.f.*") == 0
