"""Another version of a function under what runs, and a function that is taken away: nobody runs what he did not wait for, and no slot is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from test_pool import function, loaded, pool

from faas.model import FunctionVersion, RuntimeProfile
from faas.pool.lease import Draining
from faas.pool.pool import WorkerPool

PROFILE = RuntimeProfile(name="plain")


def newer(one: FunctionVersion) -> FunctionVersion:
    return msgspec.structs.replace(one, version=f"{one.version}-2")


async def test_what_runs_keeps_its_version_and_what_comes_gets_the_new_one(tmp_path: Path) -> None:
    """An idle worker of the old one is not leased again, however warm it is."""
    one = function("one")
    async with pool(tmp_path, one) as workers:
        with await loaded(workers, one) as idle:
            pass
        running = await loaded(workers, one)
        workers.serve(newer(one), PROFILE, eager=False)
        with await loaded(workers, newer(one)) as after:
            assert running.served.function == one
            assert after.served.function == newer(one)
            assert after.worker not in (idle.worker, running.worker)
        running.__exit__(None, None, None)
        with await loaded(workers, newer(one)) as again:
            assert again.worker is after.worker
        assert running.served.sandbox is None


async def test_what_waits_while_a_version_is_replaced_gets_the_new_one(tmp_path: Path) -> None:
    """It has not begun, and whoever deployed wants the old one gone."""
    one = function("one", max_workers=1)
    async with pool(tmp_path, one, slots=1) as workers:
        running = await loaded(workers, one)
        waiting = asyncio.ensure_future(workers.acquire(one.key))
        await asyncio.wait([waiting], timeout=0.05)
        workers.serve(newer(one), PROFILE, eager=False)
        running.__exit__(None, None, None)
        with await waiting as lease:
            assert lease.served.function == newer(one)
        await every_slot_is_free(workers, newer(one), 1)


async def test_whoever_waits_for_a_withdrawn_function_is_told_at_once(tmp_path: Path) -> None:
    """So that its event goes back to the stream; what runs may end."""
    one, other = function("one", max_workers=1), function("other")
    async with pool(tmp_path, one, other, slots=2) as workers:
        running = await loaded(workers, one)
        waiting = asyncio.ensure_future(workers.acquire(one.key))
        await asyncio.wait([waiting], timeout=0.05)
        workers.withdraw(one.key)
        with pytest.raises(Draining, match="withdrawn"):
            await waiting
        with pytest.raises(Draining, match="withdrawn"):
            await workers.acquire(one.key)
        assert workers.try_acquire(one.key) is None
        assert workers.appetite(one.key) == 0
        assert running.worker.state != "dead"
        running.__exit__(None, None, None)
        assert running.served.sandbox is None
        await every_slot_is_free(workers, other, 2)


async def test_a_turn_given_up_as_its_function_goes_harms_nobody(tmp_path: Path) -> None:
    """A cancelled event and a removed function in one turn of the loop: the slot that is free then goes to another function."""
    one, other = function("one", max_workers=1), function("other")
    async with pool(tmp_path, one, other, slots=1) as workers:
        running = await loaded(workers, other)
        waiting = asyncio.ensure_future(workers.acquire(one.key))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        workers.withdraw(one.key)
        running.__exit__(None, None, None)
        with pytest.raises((asyncio.CancelledError, Draining)):
            await waiting
        with await loaded(workers, other):
            pass


async def test_a_withdrawn_function_can_come_back(tmp_path: Path) -> None:
    """With nothing left of what it was."""
    one = function("one")
    async with pool(tmp_path, one) as workers:
        with await loaded(workers, one) as before:
            pass
        workers.withdraw(one.key)
        workers.serve(one, PROFILE, eager=False)
        with await loaded(workers, one) as after:
            assert after.worker is not before.worker


async def every_slot_is_free(workers: WorkerPool, one: FunctionVersion, slots: int) -> None:
    """As many leases as there are slots, at once."""
    async with asyncio.timeout(5):
        leases = [await loaded(workers, one) for _ in range(slots)]
    for lease in leases:
        lease.__exit__(None, None, None)
