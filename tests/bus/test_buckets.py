"""Keys and values, and objects, on a real server: what is written is what is read, by other clients too."""

from __future__ import annotations

import asyncio
from typing import Any

import nats
import pytest

from faas.bus.connection import Bus
from faas.bus.keyvalue import KeyValue
from faas.bus.objects import ObjectStore
from faas.bus.server import EmbeddedServer
from faas.errors import AlreadyStored, PayloadLost
from faas.objects import CHUNK_BYTES


@pytest.fixture
async def entries(bus: Bus, tenant: str) -> KeyValue:
    bucket = KeyValue(bus, tenant)
    await bucket.ensure(replicas=1, max_bytes=2**20)
    return bucket


@pytest.fixture
async def objects(bus: Bus, tenant: str) -> ObjectStore:
    bucket = ObjectStore(bus, tenant)
    await bucket.ensure(replicas=1, max_bytes=8 * 2**20)
    return bucket


async def test_a_swap_that_somebody_was_faster_with_is_refused(entries: KeyValue) -> None:
    """Two deploys at once: one wins, and the other must learn it."""
    first = await entries.put("a", b"1", expected=0)
    second = await entries.put("a", b"2", expected=first)
    for stale in (0, first):
        with pytest.raises(AlreadyStored):
            await entries.put("a", b"3", expected=stale)
    entry = await entries.entry("a")

    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", second)


async def test_of_two_swaps_at_once_one_wins(entries: KeyValue) -> None:
    """The server compares; nobody has to be alone."""
    ends = await asyncio.gather(*(entries.put("a", b"%d" % n, expected=0) for n in range(8)), return_exceptions=True)

    assert [type(end) for end in ends].count(int) == 1
    assert [type(end) for end in ends].count(AlreadyStored) == 7


async def test_what_has_changed_since_is_read_once_and_in_order(entries: KeyValue) -> None:
    """A node that comes late, or has missed every message, reads the same as one that heard them all."""
    await entries.put("a", b"1")
    seen = await entries.put("b", b"1")
    await entries.put("a", b"2")
    await entries.put("c", b"1")
    await entries.delete("b")

    assert [(entry.key, entry.value, entry.deleted) async for entry in entries.since(seen)] == [
        ("a", b"2", False), ("c", b"1", False), ("b", b"", True),
    ]  # fmt: skip
    assert [entry async for entry in entries.since((await entries.standing())[1])] == []


async def test_a_deleted_key_can_be_made_again(entries: KeyValue) -> None:
    """Its mark has a revision, which is what the swap is compared with."""
    await entries.delete("a", expected=await entries.put("a", b"1"))
    mark = await entries.entry("a")
    assert mark is not None
    await entries.put("a", b"2", expected=mark.revision)
    again = await entries.entry("a")

    assert mark.deleted
    assert again is not None
    assert (again.value, again.deleted) == (b"2", False)


async def test_a_bucket_that_is_not_there_is_empty(bus: Bus, tenant: str) -> None:
    """Whoever only looks makes nothing."""
    bucket = KeyValue(bus, f"{tenant}none")

    assert await bucket.entry("a") is None
    assert await bucket.standing() == ("", 0)
    assert [entry async for entry in bucket.since(0)] == []
    assert not await bucket.present()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
async def test_an_object_is_read_as_it_was_written(objects: ObjectStore, size: int) -> None:
    """In as many chunks as it takes, none among them."""
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    name = await objects.put("a", data)

    assert await objects.get(name, limit_bytes=2**20) == data
    assert await objects.has(name)
    assert not await objects.has("b")


async def test_the_same_body_is_written_once(bus: Bus, objects: ObjectStore) -> None:
    """A version that is deployed again and again must not fill the bucket."""
    names = {await objects.put("a", b"x" * 2 * CHUNK_BYTES) for _ in range(3)}
    stream = await bus.api(f"STREAM.INFO.OBJ_{objects.bucket}", None, dict[str, Any])

    assert len(names) == 1
    assert stream["state"]["messages"] == 3


async def test_a_deleted_object_is_gone_and_can_be_written_again(objects: ObjectStore) -> None:
    """With all of its chunks."""
    name = await objects.put("a", b"1")
    await objects.delete(name)
    assert not await objects.has(name)
    with pytest.raises(PayloadLost):
        await objects.get(name, limit_bytes=1)

    assert await objects.put("a", b"1") == name
    assert await objects.get(name, limit_bytes=1) == b"1"


async def test_an_object_that_lost_a_chunk_or_is_too_large_is_an_error(bus: Bus, objects: ObjectStore) -> None:
    """A function that is served half is worse than one that is not."""
    name = await objects.put("a", b"x" * 3 * CHUNK_BYTES)
    with pytest.raises(PayloadLost, match="at most"):
        await objects.get(name, limit_bytes=3 * CHUNK_BYTES - 1)
    await bus.api(f"STREAM.MSG.DELETE.OBJ_{objects.bucket}", {"seq": 2}, dict[str, object])

    with pytest.raises(PayloadLost):
        await objects.get(name, limit_bytes=2**20)


async def test_other_clients_read_and_write_the_same_buckets(server: EmbeddedServer, entries: KeyValue, objects: ObjectStore) -> None:
    """The formats are ADR-8 and ADR-20, so that an operator can look with what he has."""
    client = await nats.connect(server.url)
    try:
        values = await client.jetstream().key_value(entries.bucket)
        bodies = await client.jetstream().object_store(objects.bucket)
        await entries.put("ours", b"1")
        await values.put("theirs", b"2")
        ours = await objects.put("ours", b"x" * 2 * CHUNK_BYTES)
        await bodies.put("theirs", b"y" * 3 * CHUNK_BYTES)
        theirs = await entries.entry("theirs")

        assert (await values.get("ours")).value == b"1"
        assert theirs is not None
        assert theirs.value == b"2"
        assert (await bodies.get(ours)).data == b"x" * 2 * CHUNK_BYTES
        assert await objects.get("theirs", limit_bytes=2**20) == b"y" * 3 * CHUNK_BYTES
    finally:
        await client.close()
