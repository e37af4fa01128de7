"""The janitor on a real server of its own: what goes, what stays, and that a stream which was full takes events again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from pulling import CONFIG, STORE_BYTES, Deliveries, a_function

from faas import client, subjects
from faas.bus import consumers, streams
from faas.bus.connection import Bus, encode_head
from faas.bus.janitor import Janitor, _moment
from faas.bus.pull import Puller
from faas.bus.server import EmbeddedServer
from faas.config import BusConfig
from faas.errors import BusUnavailable, StoreRefused
from faas.model import FunctionSpec

WINDOW_S = 0.1
"""The shortest that the server takes."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """One for each test: FAAS_EVENTS is one stream, and here it is swept."""
    async with EmbeddedServer.open(
        BusConfig(sync="default"), state=tmp_path, host="127.0.0.1", port=0, token=secrets.token_hex(8)
    ) as server:
        yield server


class Stage:
    """Functions whose events can be published and settled one by one."""

    def __init__(self, bus: Bus, group: asyncio.TaskGroup, config: BusConfig = CONFIG, *, window_s: float = WINDOW_S) -> None:
        self.bus, self.group, self.config, self.window_s = bus, group, config, window_s
        self.specs: list[FunctionSpec] = []
        self.pullers: dict[str, tuple[Puller, Deliveries]] = {}

    async def add(self, name: str, *triggers: str) -> None:
        self.specs.append(a_function("default", name, *triggers))
        assert await streams.declare(self.bus, self.specs, self.config, store_bytes=STORE_BYTES) == {}
        declared = (await self.bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict))["config"]
        shorter = {**declared, "duplicate_window": round(self.window_s * 1e9)}
        await self.bus.api(f"STREAM.UPDATE.{subjects.EVENTS}", shorter, dict)
        consumer = (await consumers.ensure_consumers(self.bus, self.specs[-1:], self.config))["default", name][0]
        deliveries = Deliveries()
        self.pullers[name] = await Puller.start(self.bus, consumer, deliveries, group=self.group), deliveries

    async def publish(self, subject: str, *bodies: bytes) -> None:
        for body in bodies:
            await self.bus.store(subject, body)

    async def settle(self, name: str, count: int) -> None:
        puller, deliveries = self.pullers[name]
        puller.want(count)
        for _ in range(count):
            await (await deliveries.next()).ack_sync()

    async def left(self) -> dict[str, int]:
        """Messages of FAAS_EVENTS by subject."""
        info = await self.bus.api(f"STREAM.INFO.{subjects.EVENTS}", {"subjects_filter": ">"}, dict)
        return info["state"].get("subjects") or {}

    def expected(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(puller.consumer.name, puller.consumer.config.filter_subjects) for puller, _ in self.pullers.values()]  # type: ignore[union-attr]


@pytest.fixture
async def stage(bus: Bus) -> AsyncIterator[Stage]:
    async with asyncio.TaskGroup() as group:
        stage = Stage(bus, group)
        yield stage
        for puller, _ in stage.pullers.values():
            await puller.stop()


async def aged(bus: Bus) -> None:
    """Until what is stored now is older than the window, by the server's clock."""
    while True:
        info = await bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict)
        if _moment(info["ts"]) > _moment(info["state"]["last_ts"]) + timedelta(seconds=1.1 * WINDOW_S):
            return


async def test_what_is_settled_goes_and_a_quiet_functions_waiting_events_stay_whole(bus: Bus, stage: Stage) -> None:
    """A purge by the busy one's floor over the whole stream would lose the quiet one's."""
    await stage.add("busy", "janitor.busy")
    await stage.add("quiet", "janitor.quiet")
    await stage.publish("janitor.quiet", b"1", b"2", b"3")
    await stage.publish("janitor.busy", *(b"%d" % n for n in range(20)))
    await stage.settle("busy", 20)
    await stage.settle("quiet", 1)
    await aged(bus)
    swept = await Janitor(bus).sweep()

    assert swept.purged == 21
    assert await stage.left() == {"janitor.quiet": 2}
    _, deliveries = stage.pullers["quiet"]
    stage.pullers["quiet"][0].want(2)
    assert [(await deliveries.next()).data for _ in range(2)] == [b"2", b"3"]


async def test_an_event_stays_until_every_function_that_takes_it_has_settled_it(bus: Bus, stage: Stage) -> None:
    """Two functions on one event are two invocations; subjects that contain one another are taken by both."""
    await stage.add("wide", "janitor.>")
    await stage.add("narrow", "janitor.eu.*")
    await stage.publish("janitor.eu.a", b"1")
    await stage.publish("janitor.us.a", b"2")
    await stage.settle("wide", 2)
    await aged(bus)
    janitor = Janitor(bus)
    first, held = await janitor.sweep(), await stage.left()
    await stage.settle("narrow", 1)
    await janitor.sweep()

    assert held["janitor.eu.a"] == 1
    assert first.held_by.startswith("default-narrow-")
    assert await stage.left() == {}


async def test_a_withdrawn_functions_backlog_stays(bus: Bus, stage: Stage) -> None:
    """It left the folder; what was accepted for it runs when it is back."""
    await stage.add("gone", "janitor.gone")
    await stage.add("here", "janitor.here")
    await stage.publish("janitor.gone", b"1", b"2")
    await stage.publish("janitor.here", b"3")
    await stage.settle("here", 1)
    puller, _ = stage.pullers.pop("gone")
    await puller.stop()
    await aged(bus)
    await Janitor(bus, expected=tuple).sweep()

    assert await stage.left() == {"janitor.gone": 2}


async def test_events_within_the_dedup_window_stay(bus: Bus, group: asyncio.TaskGroup) -> None:
    """After a restart the server knows the ids of what is there, and of nothing else: a repeated publish would run again."""
    stage = Stage(bus, group, window_s=60)
    await stage.add("f", "janitor.in")
    await stage.publish("janitor.in", b"1", b"2")
    await stage.settle("f", 2)
    await aged(bus)
    swept = await Janitor(bus).sweep()
    await stage.pullers["f"][0].stop()

    assert (swept.purged, await stage.left()) == (0, {"janitor.in": 2})


async def test_a_consumer_that_never_matched_holds_nothing_back(bus: Bus, stage: Stage) -> None:
    """It reports an acknowledgement floor of zero for ever."""
    await stage.add("busy", "janitor.busy.*")
    await stage.add("never", "janitor.busy.never")
    await stage.publish("janitor.busy.now", b"1", b"2")
    await stage.settle("busy", 2)
    await aged(bus)

    assert (await Janitor(bus).sweep()).purged == 2


async def test_a_consumer_that_vanished_holds_back_what_it_takes_until_it_is_made_again(bus: Bus, stage: Stage) -> None:
    """It comes back behind its last floor; what was purged in between would be lost to it."""
    await stage.add("one", "janitor.both")
    await stage.add("other", "janitor.both")
    await stage.publish("janitor.both", b"1")
    await stage.settle("one", 1)
    expected = stage.expected()
    await bus.api(f"CONSUMER.DELETE.{subjects.EVENTS}.{stage.pullers['other'][0].consumer.name}", None, dict)
    await aged(bus)
    swept = await Janitor(bus, expected=lambda: expected).sweep()

    assert (swept.purged, await stage.left()) == (0, {"janitor.both": 1})


async def test_no_other_stream_is_touched(bus: Bus, stage: Stage) -> None:
    """A purge of FAAS_SCHEDULES would delete what waits there, and a stream of a user's own is a user's own."""
    await stage.add("f", "janitor.in")
    await bus.api("STREAM.CREATE.MINE", {"name": "MINE", "subjects": ["mine.>"], "storage": "file"}, dict)
    for subject in ("faas.retry.default.f.x", "mine.default.f.x"):
        await bus.store(subject, b"waits")
    await stage.publish("janitor.in", b"1")
    await stage.settle("f", 1)
    await aged(bus)
    purges: list[str] = []
    await bus.subscribe("$JS.API.STREAM.PURGE.*", lambda message: purges.append(message.subject))
    await Janitor(bus).sweep()
    await bus.fence()

    assert set(purges) == {f"$JS.API.STREAM.PURGE.{subjects.EVENTS}"}
    assert (await bus.api("STREAM.INFO.FAAS_SCHEDULES", None, dict))["state"]["messages"] == 1
    assert (await bus.api("STREAM.INFO.MINE", None, dict))["state"]["messages"] == 1


async def test_a_second_sweep_with_nothing_new_asks_for_no_purge(bus: Bus, stage: Stage) -> None:
    """With a thousand functions each purge that removes nothing would cost an idle node."""
    await stage.add("f", "janitor.in")
    await stage.add("quiet", "janitor.quiet")
    await stage.publish("janitor.quiet", b"1")
    await stage.publish("janitor.in", b"1")
    await stage.settle("f", 1)
    await aged(bus)
    janitor = Janitor(bus)
    await janitor.sweep()
    purges: list[str] = []
    await bus.subscribe("$JS.API.STREAM.PURGE.*", lambda message: purges.append(message.subject))
    await janitor.sweep()
    await bus.fence()

    assert purges == []


async def test_a_stream_that_was_made_anew_is_swept_from_its_beginning(bus: Bus, stage: Stage) -> None:
    """Its sequences begin again; what was purged of the old one says nothing."""
    await stage.add("f", "janitor.in")
    janitor = Janitor(bus)
    for _ in range(2):
        await stage.publish("janitor.in", b"1", b"2")
        await stage.settle("f", 2)
        await aged(bus)
        assert (await janitor.sweep()).purged == 2
        puller, _ = stage.pullers.pop("f")
        await puller.stop()
        await bus.api(f"STREAM.DELETE.{subjects.EVENTS}", None, dict)
        stage.specs.clear()
        await stage.add("f", "janitor.in")


async def filled(bus: Bus) -> int:
    """How many events a stream took until it refused one."""
    stored = 0
    with suppress(StoreRefused):
        while True:
            await bus.store("janitor.in", bytes(64 * 1024))
            stored += 1
    return stored


async def test_a_full_stream_refuses_in_words_and_heals_once_it_was_swept(
    server: EmbeddedServer, bus: Bus, group: asyncio.TaskGroup
) -> None:
    """Refused is better than dropped; and nobody has to do anything about it once the events are settled."""
    stage = Stage(bus, group, msgspec.structs.replace(CONFIG, max_bytes=2**20))
    await stage.add("f", "janitor.in")
    stored = await filled(bus)
    with pytest.raises(StoreRefused, match="maximum bytes exceeded"):
        await bus.store("janitor.in", bytes(64 * 1024))
    async with client.connect(server.url) as caller:
        with pytest.raises(BusUnavailable, match=r"is full.*send it again.*faas doctor"):
            await caller.publish("janitor.in", b"late" * 20_000)
        await stage.settle("f", stored)
        await aged(bus)
        assert (await Janitor(bus).sweep()).purged == stored
        await caller.publish("janitor.in", b"late" * 20_000)
    await stage.pullers["f"][0].stop()


async def test_the_stream_stays_bounded_under_more_settled_events_than_it_can_hold(bus: Bus, group: asyncio.TaskGroup) -> None:
    """Sweeping at its own pace, while events come and are settled: nobody is refused for long, and none is lost."""
    stage = Stage(bus, group, msgspec.structs.replace(CONFIG, max_bytes=2**20))
    await stage.add("f", "janitor.in")
    published = 0
    async with Janitor.open(bus, pace_s=0.05):
        for number in range(60):
            while True:
                try:
                    await bus.store("janitor.in", bytes(64 * 1024), head=encode_head([("Nats-Msg-Id", str(number))]))
                    break
                except StoreRefused:
                    await aged(bus)
            published += 1
            await stage.settle("f", 1)
    held = (await bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict))["state"]["bytes"]
    await stage.pullers["f"][0].stop()

    assert published * 64 * 1024 > 3 * 2**20
    assert held <= 2**20


async def test_a_stream_that_fills_up_is_told_with_who_holds_it(bus: Bus, group: asyncio.TaskGroup) -> None:
    """An operator must learn of it before publishers are refused, and whose events they are."""
    stage = Stage(bus, group, msgspec.structs.replace(CONFIG, max_bytes=2**20))
    await stage.add("slow", "janitor.slow")
    await stage.publish("janitor.slow", *[bytes(64 * 1024)] * 15)
    await aged(bus)
    swept = await Janitor(bus).sweep()
    await stage.pullers["slow"][0].stop()

    assert swept.fill > 0.8
    assert swept.held_by.startswith("default-slow-")


async def test_of_two_janitors_one_sweeps(server: EmbeddedServer, bus: Bus, stage: Stage) -> None:
    """Each round costs a listing of all consumers; a hundred nodes need not do it a hundred times."""
    await stage.add("f", "janitor.in")
    swept: asyncio.Queue[object] = asyncio.Queue()
    async with Bus.open(server.url, node="other") as elsewhere:
        await bus.subscribe(subjects.JANITOR, swept.put_nowait)
        async with Janitor.open(bus, pace_s=0.1), Janitor.open(elsewhere, pace_s=30):
            listings: list[str] = []
            await elsewhere.subscribe(f"$JS.API.STREAM.INFO.{subjects.EVENTS}", lambda message: listings.append(message.reply))
            await elsewhere.fence()
            for _ in range(5):
                await swept.get()
            await elsewhere.fence()

    assert not [reply for reply in listings if reply.startswith(elsewhere._inbox)]
