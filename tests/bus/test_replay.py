"""Reading streams forward, and how consumers stand."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from faas.bus import replay
from faas.bus.connection import Bus
from faas.bus.consumers import Consumer
from faas.bus.replay import Replay
from faas.bus.server import EmbeddedServer


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url)
    yield client
    await client.close()


@pytest.fixture
async def stream(client: Client) -> AsyncIterator[str]:
    """Ten messages with head and body."""
    name = f"REPLAYED_{secrets.token_hex(3)}"
    await client.jetstream().add_stream(name=name, subjects=[f"{name}.*"])  # without direct gets, as a user's may be
    for number in range(1, 11):
        await client.jetstream().publish(f"{name}.a", str(number).encode(), headers={"N": str(number)})
    yield name
    await client.jetstream().delete_stream(name)


async def numbers(replay: Replay, stream: str, after: int, **options: object) -> list[list[int]]:
    return [[entry.sequence for entry in batch] async for batch in replay.after(stream, after, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "batch", "expected"), [(0, 4, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]), (8, 4, [[9, 10]]), (6, 2, [[7, 8], [9, 10]])]
)
async def test_a_stream_is_read_forward_from_a_sequence(bus: Bus, stream: str, after: int, batch: int, expected: list[list[int]]) -> None:
    """In its order, in batches, to its end."""
    async with Replay.open(bus) as reader:
        assert await numbers(reader, stream, after, batch=batch) == expected


async def test_behind_the_last_message_there_is_nothing(bus: Bus, stream: str) -> None:
    """And the reading ends at once."""
    async with Replay.open(bus) as reader:
        assert await numbers(reader, stream, 10, batch=4) == []


async def test_heads_come_without_their_bodies(bus: Bus, stream: str) -> None:
    """Payloads may be large, and are not needed to tell what happened."""
    async with Replay.open(bus) as reader:
        (entries,) = [batch async for batch in reader.after(stream, 8, batch=4, heads=True)]

    assert [(entry.headers["N"], entry.data) for entry in entries] == [("9", b""), ("10", b"")]
    assert await replay.body_at(bus, stream, 9) == b"9"
    assert await replay.body_at(bus, stream, 99) == b""
    assert [await replay.is_there(bus, stream, sequence) for sequence in (10, 11)] == [True, False]


async def test_a_reading_leaves_no_consumer_behind(bus: Bus, client: Client, stream: str) -> None:
    """A stream takes a thousand; one that is given up half-way counts too."""
    async with Replay.open(bus) as reader:
        reading = reader.after(stream, 0, batch=2)
        await anext(reading)
        await reading.aclose()  # type: ignore[attr-defined]

    assert (await client.jetstream().stream_info(stream)).state.consumer_count == 0


async def test_what_a_reading_before_left_on_its_way_is_passed_over(bus: Bus, stream: str) -> None:
    """Its messages would be counted twice, or in the wrong order."""
    async with Replay.open(bus) as reader:
        async for _ in reader.after(stream, 0, batch=2):
            break
        assert await numbers(reader, stream, 8, batch=4) == [[9, 10]]


async def test_what_streams_hold_is_told(bus: Bus, stream: str) -> None:
    """By name, and by subject as one answer or as a number."""
    there = (await replay.extents(bus))[stream]

    assert (there.first, there.last, there.messages, there.consumers) == (1, 10, 10, 0)
    assert await replay.counts(bus, stream, ">") == {f"{stream}.a": 10}
    assert await replay.count(bus, stream, f"{stream}.*") == 10
    assert await replay.count(bus, stream, f"{stream}.b") == 0


async def test_the_consumer_of_a_function_says_what_waits(bus: Bus, consumer: Consumer, tenant: str) -> None:
    """By the owner that its metadata names."""
    await bus.store(f"{tenant}.in", b"1")
    (found,) = [one for one in await replay.consuming(bus, consumer.stream) if one.tenant == tenant]

    assert (found.function, found.name, found.pending, found.open) == ("f", consumer.name, 1, 1)
    assert f"{tenant}.in" in found.filters


@pytest.mark.parametrize(("text", "at_ms"), [("1970-01-01T00:00:01Z", 1000), ("1970-01-01T00:00:01.5+00:00", 1500), ("nonsense", 0)])
def test_a_moment_of_the_server_is_read(text: str, at_ms: int) -> None:
    """Schedules and stream states have them."""
    assert replay.moment_ms(text) == at_ms
