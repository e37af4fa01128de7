"""The pool on a real backend: who gets a worker, what becomes of it, and that no slot or sandbox is ever lost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faas.config import PoolConfig
from faas.errors import EnvironmentFailed
from faas.model import Environment, FunctionSpec, FunctionVersion, ProfilePool, RuntimeProfile, Scale, SourceFile
from faas.pool.lease import Draining, Lease
from faas.pool.pool import WorkerPool
from faas.pool.process import ProcessBackend
from faas.units import Duration
from faas.worker import wire

ENVIRONMENT = Environment(profile="plain", digest="0" * 64, python=sys.executable)
SOURCE = (SourceFile("handler.py", b"def handle(event):\n    return 1\n"),)


def function(name: str, **scale: object) -> FunctionVersion:
    return FunctionVersion(spec=FunctionSpec(name=name, scale=Scale(**scale)), version=f"v-{name}", files=SOURCE)  # type: ignore[arg-type]


@asynccontextmanager
async def pool(
    tmp_path: Path, *functions: FunctionVersion, slots: int = 8, sandboxes: int = 8, build: object = None, build_overlay: object = None
) -> AsyncIterator[WorkerPool]:
    """A pool that serves these functions, with room for so many sandboxes."""
    profile = RuntimeProfile(name="plain", pool=ProfilePool(max=sandboxes, keep_alive_s=Duration(600)))

    async def ready(asked: RuntimeProfile) -> Environment:
        return ENVIRONMENT

    async with (
        ProcessBackend(tmp_path / "state", "test", on_output=lambda worker, line: None) as backend,
        WorkerPool.open(
            PoolConfig(slots=slots),
            backend,
            build or ready,  # type: ignore[arg-type]
            build_overlay=build_overlay,  # type: ignore[arg-type]
        ) as made,
    ):
        for one in functions:
            made.serve(one, profile, eager=False)
        yield made


async def loaded(pool: WorkerPool, one: FunctionVersion) -> Lease:
    """A lease whose worker has the function, ended cleanly unless the caller says otherwise."""
    lease = await pool.acquire(one.key)
    if lease.worker.version is None:
        assert isinstance(await lease.worker.load(pool.load_message(one)), wire.Loaded)
    lease.clean = True
    return lease


async def test_a_worker_is_warm_again_after_a_clean_end_and_gone_after_any_other(tmp_path: Path) -> None:
    """Its state after a kill is unknown."""
    one = function("one")
    async with pool(tmp_path, one) as workers:
        with await loaded(workers, one) as first:
            worker = first.worker
        with await loaded(workers, one) as second:
            assert (second.start, second.worker) == ("warm", worker)
            second.clean = False
        with await loaded(workers, one) as third:
            assert third.start != "warm"
            assert third.worker is not worker


async def test_a_killed_worker_is_never_leased_again_though_its_lease_ended_well(tmp_path: Path) -> None:
    """It died in the same moment."""
    one = function("one")
    async with pool(tmp_path, one) as workers:
        with await loaded(workers, one) as lease:
            lease.worker.kill()

        assert workers.try_acquire(one.key) is None
        with await loaded(workers, one) as again:
            assert again.worker is not lease.worker


async def test_an_idle_worker_that_dies_is_not_handed_out(tmp_path: Path) -> None:
    """Between two events anything may happen to it."""
    one = function("one")
    async with pool(tmp_path, one) as workers:
        with await loaded(workers, one) as lease:
            dead = lease.worker
        gone = asyncio.Event()
        dead.on_lost, told = (lambda worker: (told(worker), gone.set())), dead.on_lost  # type: ignore[misc,assignment]
        dead.kill()
        async with asyncio.timeout(5):
            await gone.wait()
        with await loaded(workers, one) as again:
            assert again.worker is not dead


async def test_slots_bound_what_runs_at_once_and_every_one_comes_back(tmp_path: Path) -> None:
    """Given up while waiting, failed, or done: the count is what it was."""
    one = function("one", max_workers=8)
    async with pool(tmp_path, one, slots=2) as workers:
        first, second = await loaded(workers, one), await loaded(workers, one)
        waiting = [asyncio.ensure_future(workers.acquire(one.key)) for _ in range(3)]
        await asyncio.wait(waiting, timeout=0.05)
        assert not any(task.done() for task in waiting)
        waiting[0].cancel()
        first.__exit__(None, None, None)
        waiting[1].cancel()  # its turn may have come in this very moment
        second.__exit__(None, None, None)
        (await waiting[2]).__exit__(None, None, None)
        await asyncio.wait(waiting)
        held = [await loaded(workers, one) for _ in range(2)]
        third = asyncio.ensure_future(workers.acquire(one.key))
        done, _ = await asyncio.wait([third], timeout=0.05)
        assert not done
        for lease in held:
            lease.__exit__(None, None, None)
        (await third).__exit__(None, None, None)


async def test_max_workers_bounds_one_function_and_leaves_slots_to_others(tmp_path: Path) -> None:
    """A function at its cap waits; another goes past it."""
    one, other = function("one", max_workers=1), function("other")
    async with pool(tmp_path, one, other, slots=4) as workers:
        held = await loaded(workers, one)
        second = asyncio.ensure_future(workers.acquire(one.key))
        with await loaded(workers, other):
            assert not second.done()
        held.__exit__(None, None, None)
        async with asyncio.timeout(5):
            (await second).__exit__(None, None, None)


async def test_a_function_that_waits_at_its_cap_keeps_no_other_from_its_warm_worker(tmp_path: Path) -> None:
    """Or a flood of one would make every call of the others take the slower way."""
    one, other = function("one", max_workers=1), function("other")
    async with pool(tmp_path, one, other, slots=4) as workers:
        with await loaded(workers, other):
            pass
        held = await loaded(workers, one)
        waiting = asyncio.ensure_future(workers.acquire(one.key))
        await asyncio.wait([waiting], timeout=0.05)
        warm = workers.try_acquire(other.key)
        assert warm is not None
        assert workers.try_acquire(one.key) is None
        warm.clean = True
        for lease in (warm, held):
            lease.__exit__(None, None, None)
        async with asyncio.timeout(5):
            (await waiting).__exit__(None, None, None)


async def test_where_functions_wait_for_slots_weight_says_who_gets_them(tmp_path: Path) -> None:
    """A function that matters more is declared so, and does not have to be on a node of its own."""
    heavy, light = function("heavy", weight=100), function("light", weight=1)
    async with pool(tmp_path, heavy, light, slots=1) as workers:
        held = await loaded(workers, light)
        order: list[str] = []

        async def once(one: FunctionVersion) -> None:
            with await loaded(workers, one):
                order.append(one.spec.name)

        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(once(one)) for one in (light, heavy) * 5]
            await asyncio.wait(waiting, timeout=0.05)
            held.__exit__(None, None, None)

    assert order.count("light") == 5
    assert order.index("light", order.index("light") + 1) > max(index for index, name in enumerate(order) if name == "heavy")


async def test_at_the_limit_the_longest_idle_sandbox_goes_for_a_new_function(tmp_path: Path) -> None:
    """Three functions in two sandboxes: the one that has rested longest starts anew the next time."""
    functions = [function(name) for name in ("a", "b", "c")]
    async with pool(tmp_path, *functions, sandboxes=2) as workers:
        for one in functions:
            with await loaded(workers, one):
                pass
        with await loaded(workers, functions[1]) as kept:
            assert kept.start == "warm"
        with await loaded(workers, functions[0]) as evicted:
            assert evicted.start != "warm"


async def test_with_every_sandbox_busy_a_new_function_waits_for_one(tmp_path: Path) -> None:
    """Nothing that runs is evicted."""
    one, other = function("one"), function("other")
    async with pool(tmp_path, one, other, sandboxes=1) as workers:
        held = await loaded(workers, one)
        waiting = asyncio.ensure_future(workers.acquire(other.key))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        held.__exit__(None, None, None)
        async with asyncio.timeout(5):
            (await waiting).__exit__(None, None, None)


async def test_an_environment_that_fails_is_told_to_all_that_wait_and_tried_once(tmp_path: Path) -> None:
    """Each event would start a build otherwise."""
    tries = []

    async def fail(profile: RuntimeProfile) -> Environment:
        tries.append(profile.name)
        raise EnvironmentFailed(profile.name, "no network")

    one = function("one")
    async with pool(tmp_path, one, build=fail) as workers:
        ends = await asyncio.gather(*[workers.acquire(one.key) for _ in range(5)], return_exceptions=True)
        with pytest.raises(EnvironmentFailed):
            await workers.acquire(one.key)

    assert [type(end) for end in ends] == [EnvironmentFailed] * 5
    assert tries == ["plain"]


async def test_a_drain_ends_all_waiting_and_lets_what_runs_finish(tmp_path: Path) -> None:
    """Whoever waits gives its event back at once."""
    one = function("one", max_workers=1)
    async with pool(tmp_path, one) as workers:
        held = await loaded(workers, one)
        waiting = asyncio.ensure_future(workers.acquire(one.key))
        await asyncio.wait([waiting], timeout=0.05)
        workers.drain()
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await workers.acquire(one.key)
        held.__exit__(None, None, None)
