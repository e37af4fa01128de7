"""Schedules under faults: nodes and servers that die, clocks that are wrong, streams that are full or gone. Each time fires once, and none of them in a burst."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import nats.errors
import nats.js.errors
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from clustered import ClusteredWorld
from test_clocks import HOUR_S, how, skewed
from world import EXECUTED, World

__all__ = ["how"]  # the fixture

TICKS = "import faas\ndef handle(event: faas.Event, ctx):\n    note(ctx)\n    return event.id\n"
SECONDLY = '[[trigger]]\nschedule = "* * * * * *"\n'
OUTAGE_S = 5.0

pytestmark = pytest.mark.timeout(90)


def with_ticks(made: World) -> World:
    """Instead of the functions of the other faults: one that only its schedule sets off."""
    for folder in list(made.functions.iterdir()):
        shutil.rmtree(folder)
    made.function("ticks", EXECUTED.format(log=str(made.log)) + TICKS, SECONDLY)
    return made


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, seed=12, environments="current") as made:
        yield with_ticks(made)
    assert made.left == []  # I4


async def fired(world: World) -> list[float]:
    """The times, in seconds since the epoch, whose events have an outcome; all of them succeeded."""
    outcomes = await world.read("FAAS_OUTCOMES", "faas.outcome.default.ticks.*")
    assert {headers["Faas-Outcome"] for headers, _ in outcomes} <= {"succeeded"}
    return sorted(datetime.fromisoformat(headers["Faas-Event-Id"]).timestamp() for headers, _ in outcomes)


async def until(world: World, wanted: Callable[[list[float]], bool], within_s: float = 30.0) -> list[float]:
    """What has fired, once it is as is wanted."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                if wanted(times := await fired(world)):
                    return times
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError):
                pass
            await asyncio.sleep(0.2)


async def more(world: World, count: int) -> list[float]:
    """Wait for so many later times than there are now."""
    last = (await until(world, bool))[-1]
    return await until(world, lambda times: sum(at > last for at in times) >= count, within_s=60)


def executions(world: World) -> Counter[str]:
    """How often each attempt of an invocation was executed."""
    return Counter(world.log.read_text().split("\n")[:-1])


def gaps(times: list[float]) -> list[tuple[float, float]]:
    return [(earlier, later) for earlier, later in pairwise(times) if later - earlier != 1]


async def test_several_nodes_fire_each_time_once_and_leave_none_out(world: World) -> None:
    """Nobody is elected: all of them arm, one of them wins, and the event is the same whoever did."""
    for name in ("a", "b", "c"):
        await world.node(name)
    times = await more(world, 6)

    assert gaps(times) == []
    assert len(times) == len(set(times))
    assert set(executions(world).values()) == {1}


async def test_a_node_that_dies_leaves_no_time_out(world: World) -> None:
    """Whoever is left arms the next one."""
    for name in ("a", "b"):
        await world.node(name)
    await more(world, 2)
    await world.kill("a")
    times = await more(world, 4)
    await world.settle(20.0)
    times = [at for at in await fired(world) if at <= times[-1]]

    assert gaps(times) == []
    assert (await world.verdict()).broken == []


async def test_while_no_node_runs_one_time_waits_and_the_others_are_gone(world: World) -> None:
    """A server that went on by itself would leave a burst for whoever comes first."""
    await world.node("a")
    before = await more(world, 2)
    await world.kill("a")
    killed = time.time()
    await asyncio.sleep(OUTAGE_S)
    started = time.time()
    await world.node("a")
    times = await until(world, lambda times: times[-1] > started + 3)

    assert len([at for at in times if killed + 1 < at < started]) == 0
    assert len([at for at in times if before[-1] < at < started]) <= 3  # those until it was killed, and the one that was armed
    assert [gap for gap in gaps([at for at in times if at > started]) if gap[0] > started + 3] == []
    assert (await world.verdict()).broken == []


async def test_f10_in_a_cluster_the_death_of_the_leader_fires_nothing_twice(tmp_path: Path) -> None:
    """The next leader knows what was armed; times that nobody could arm while there was none are left out."""
    world = ClusteredWorld(tmp_path, seed=10, environments="current")
    async with world:
        with_ticks(world)
        for name in ("a", "b"):
            await world.node(name)
        await more(world, 3)
        leader = await world.cluster.leader("FAAS_SCHEDULES")
        await world.cluster.servers[leader].end()
        await more(world, 4)
        await world.cluster.start(leader)
        times = await more(world, 4)

        assert len(times) == len(set(times))
        assert set(executions(world).values()) == {1}
    assert world.left == []


@pytest.mark.parametrize("how_it_goes", ["frozen", "killed"])
async def test_f12_after_a_server_was_away_one_time_fires_late_and_no_burst(world: World, how_it_goes: str) -> None:
    """What was armed is in its store; what would have been due meanwhile was armed by nobody."""
    await world.node("a")
    await more(world, 2)
    away = time.time()
    if how_it_goes == "frozen":
        await world.freeze_server(OUTAGE_S)
    else:
        assert world._server is not None
        world._server.kill()
        await world._server.wait()
        await asyncio.sleep(OUTAGE_S)
        await world.start_server()
    back = time.time()
    times = await until(world, lambda times: times[-1] > back + 5)

    assert len([at for at in times if away + 1 < at < back - 1]) <= 1
    assert len(times) == len(set(times))
    assert set(executions(world).values()) == {1}


async def test_f12_what_fires_while_the_events_are_full_comes_once_there_is_room(world: World) -> None:
    """No silent drop: it waits in the stream of schedules, until the next one is due and a minute at least."""
    await world.node("a")
    await more(world, 2)
    config = (await world.stream.stream_info("FAAS_EVENTS")).config
    state = (await world.stream.stream_info("FAAS_EVENTS")).state
    await world.stream.update_stream(config, max_msgs=state.messages)
    async with asyncio.timeout(20):
        while len(waiting := await due(world)) < 3:
            pass
    await world.stream.update_stream(config, max_msgs=-1)
    times = await until(world, lambda times: set(waiting) <= set(times))

    assert gaps(times) == []
    assert set(executions(world).values()) == {1}


async def due(world: World) -> list[float]:
    """The times that have fired and that no function has ended yet."""
    there = await world.read("FAAS_SCHEDULES", "faas.due.default.ticks")
    ended = set(await fired(world))
    times = [datetime.fromisoformat(headers["Faas-First-Seen"]).timestamp() for headers, _ in there]
    return [at for at in times if at not in ended]


async def test_f19_a_payload_at_the_boundary_fires_and_one_beyond_is_refused_where_it_is_declared(world: World) -> None:
    """No event of it is ever made, so no connection can be cut for it."""
    for name, size_bytes in (("fits", 8192), ("large", 8193), ("limited", 513)):
        payload = f'payload = "{"x" * (size_bytes - 2)}"\n[limits]\npayload = "{"512B" if name == "limited" else "8KiB"}"\n'
        world.function(name, "def handle(event, ctx):\n    return len(event)\n", SECONDLY + payload)
    await world.node("a")
    await more(world, 2)
    results = {body for _, body in await world.read("FAAS_OUTCOMES", "faas.outcome.default.fits.*")}
    log = (world.nodes["a"].state / "node.log").read_text()

    assert results == {b"8190"}
    assert [slot for slot in await armed(world) if "l" in slot.split(".")[3]] == []
    assert "large/function.toml: line 8: trigger[1].payload: is more than the 8 KiB that all schedules of a function may have" in log
    assert "limited/function.toml: line 8: trigger[1].payload: is more than the 512 B of limits.payload" in log


async def test_f21_what_somebody_wrote_by_hand_silences_no_schedule_and_runs_nothing(world: World) -> None:
    """Only the runtime and its operators write there; what fires of a slip of theirs is a dead letter."""
    await world.node("a")
    await more(world, 2)
    before = len(executions(world))
    await world.stream.publish("faas.schedule.default.ticks.0", b"no schedule")  # it has no time: it would stay for ever
    at = datetime.fromtimestamp(time.time(), UTC).isoformat()
    fires = {"Nats-Schedule": f"@at {at}", "Nats-Schedule-Target": "faas.due.default.ticks"}
    await world.stream.publish("faas.schedule.default.ticks.x", b"not ours", headers=fires)
    await more(world, 3)
    letters = await world.read("FAAS_DEAD", "faas.dead.default.ticks")

    assert [(headers["Faas-Reason"], body) for headers, body in letters] == [("event_invalid", b"not ours")]
    assert len(executions(world)) > before
    assert set(executions(world).values()) == {1}


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S], ids=["fast", "slow"])
async def test_f23_schedules_go_by_the_clock_of_the_server(world: World, how: str, by_s: int) -> None:
    """A node whose clock is an hour off arms what the others would: nothing fires an hour early, late or in a burst."""
    await world.node("wrong", environ=skewed(how, by_s))
    times = await more(world, 3)
    await world.node("right")
    times = await more(world, 3)

    assert gaps(times) == []
    assert all(abs(at - time.time()) < HOUR_S / 6 for at in times)
    assert set(executions(world).values()) == {1}


async def test_a_stream_of_schedules_that_an_operator_deleted_is_made_and_filled_again(world: World) -> None:
    """Nothing else knows what was armed but the registry."""
    await world.node("a")
    await more(world, 2)
    await world.stream.delete_stream("FAAS_SCHEDULES")
    await more(world, 4)


async def test_nodes_with_different_folders_leave_each_others_schedules_alone(world: World) -> None:
    """What is armed is what the registry says, and not what one of them has on its disk."""
    await world.node("a")
    await more(world, 1)
    world.functions = world.folder / "others"
    world.function("yearly", TICKS.replace("    note(ctx)\n", ""), '[[trigger]]\nschedule = "0 0 1 1 *"\n')
    await world.node("b")
    await world.kill("b")
    await more(world, 2)
    await world.node("b")
    await world.kill("a")
    await more(world, 2)
    await world.settle(20.0)
    times = await fired(world)

    assert "faas.schedule.default.yearly.0" in await armed(world)
    assert gaps(times) == []
    assert "schedule.removed" not in "".join((world.nodes[name].state / "node.log").read_text() for name in ("a", "b"))


async def test_a_function_that_left_the_folder_while_no_node_ran_fires_no_more(world: World) -> None:
    """What is left of it is taken away by whichever node comes next."""
    world.function("yearly", TICKS.replace("    note(ctx)\n", ""), '[[trigger]]\nschedule = "0 0 1 1 *"\n')
    await world.node("a")
    await world.node("b")
    await more(world, 1)
    assert "faas.schedule.default.yearly.0" in await armed(world)
    for name in ("a", "b"):
        await world.kill(name, signal.SIGTERM)
    shutil.rmtree(world.functions / "yearly")
    for name in ("b", "a"):
        await world.node(name)  # it was one of the two that had deployed it
    async with asyncio.timeout(20):
        while "faas.schedule.default.yearly.0" in await armed(world):
            pass
    await more(world, 2)


async def armed(world: World) -> set[str]:
    info = await world.stream.stream_info("FAAS_SCHEDULES", subjects_filter="faas.schedule.>")
    return set(info.state.subjects or {})
