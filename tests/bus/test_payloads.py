"""The bucket of large payloads on a real server: whole or not there, as other programs' clients know it, bounded in time and room."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from nats.js.object_store import ObjectStore
from pulling import CONFIG, STORE_BYTES

from faas.bus import streams
from faas.bus.connection import Bus
from faas.bus.payloads import Payloads
from faas.bus.server import EmbeddedServer
from faas.errors import BusUnavailable, PayloadLost, StoreRefused
from faas.objects import CHUNK_BYTES, name_in, part_of
from faas.units import Size

MIB = 2**20
STREAM = "OBJ_FAAS_PAYLOADS"


@pytest.fixture
async def payloads(bus: Bus) -> Payloads:
    await streams.declare(bus, [], CONFIG, store_bytes=STORE_BYTES)
    return Payloads(bus)


@pytest.fixture
async def store(server: EmbeddedServer, payloads: Payloads) -> AsyncIterator[ObjectStore]:
    """The bucket as nats-py, like any foreign client, sees it."""
    client = await nats.connect(server.url)
    yield await client.jetstream().object_store("FAAS_PAYLOADS")
    await client.close()


async def info(bus: Bus) -> dict[str, Any]:
    return await bus.api(f"STREAM.INFO.{STREAM}", None, dict)


async def put(payloads: Payloads, body: bytes, *, kept_s: float = 60) -> str:
    """Its name."""
    name = name_in(await payloads.put(part_of(body), len(body), prefix=secrets.token_hex(8), kept_s=kept_s))
    assert name is not None
    return name


async def fetched(payloads: Payloads, name: str, folder: Path) -> bytes:
    with (folder / "body").open("wb") as file:
        await payloads.fetch(await payloads.find(name), file)
    return (folder / "body").read_bytes()


async def test_the_bucket_is_kept_as_long_as_events_wait(bus: Bus, payloads: Payloads) -> None:
    """An event whose body is gone before it has its turn would be lost."""
    config = (await info(bus))["config"]

    assert config["max_age"] > 8 * 86_400 * 10**9
    assert (config["discard"], config["allow_rollup_hdrs"], config["allow_msg_ttl"], config["allow_direct"]) == ("new", True, True, True)
    assert 0 < config["max_bytes"] < STORE_BYTES


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 9 * MIB + 3])
async def test_what_is_put_is_fetched_and_any_client_can_read_it(payloads: Payloads, store: ObjectStore, tmp_path: Path, size: int) -> None:
    """Programs in other languages get results with their own object store client."""
    body = os.urandom(size)
    name = await put(payloads, body)

    assert await fetched(payloads, name, tmp_path) == body
    assert (await store.get(name)).data == body


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 1])
async def test_what_any_client_puts_is_fetched(payloads: Payloads, store: ObjectStore, tmp_path: Path, size: int) -> None:
    """They name their objects as they like, and cut them into chunks of their own size."""
    body, name = os.urandom(size), f"pictures/{secrets.token_hex(4)} é.png"
    await store.put(name, body)

    assert await fetched(payloads, name, tmp_path) == body


@pytest.mark.parametrize("name", ["a" * 43, "b" * 44, "in a folder/" + "c" * 43])
async def test_a_name_of_somebody_else_is_no_digest(payloads: Payloads, store: ObjectStore, tmp_path: Path, name: str) -> None:
    """However long it is: only names of ours end in what they stand for."""
    await store.put(name, b"x")

    assert await fetched(payloads, name, tmp_path) == b"x"


async def test_reading_leaves_no_consumer_behind(bus: Bus, payloads: Payloads, tmp_path: Path) -> None:
    """A stream takes a thousand of them; each get of an ordinary client leaves one for seconds."""
    name = await put(payloads, os.urandom(MIB))
    before = (await info(bus))["state"]["consumer_count"]
    for _ in range(3):
        await fetched(payloads, name, tmp_path)

    assert (await info(bus))["state"]["consumer_count"] == before


async def test_an_object_goes_when_its_time_is_over(payloads: Payloads, tmp_path: Path) -> None:
    """The bucket is bounded: what nobody can need any more must not fill it."""
    name = await put(payloads, b"x", kept_s=1)

    async def look() -> None:
        while True:
            await payloads.find(name)

    with pytest.raises(PayloadLost, match="there is no object"):
        await look()


async def test_an_object_that_is_let_go_leaves_nothing(bus: Bus, payloads: Payloads) -> None:
    """Its room is another's from then on."""
    before = (await info(bus))["state"]["bytes"]
    await payloads.let_go(await put(payloads, os.urandom(MIB)))

    assert (await info(bus))["state"]["bytes"] == before


async def test_an_object_without_all_its_chunks_is_lost(bus: Bus, payloads: Payloads, tmp_path: Path) -> None:
    """Half a body that looks like a whole one would be the worst of all ends."""
    name = await put(payloads, os.urandom(MIB))
    found = await payloads.find(name)
    await bus.api(f"STREAM.PURGE.{STREAM}", {"filter": f"$O.FAAS_PAYLOADS.C.{found.nuid}", "keep": 2}, dict)
    with pytest.raises(PayloadLost, match="lost some of its chunks"):
        await fetched(payloads, name, tmp_path)


@pytest.mark.parametrize("change", [{"digest": "SHA-256=" + "A" * 43 + "="}, {"size": 5}, {"size": MIB + 1}, {"chunks": 3}])
async def test_an_object_that_is_not_what_its_metadata_says_is_lost(
    bus: Bus, payloads: Payloads, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Broken on a disk or changed by somebody: it is not handed to a function."""
    name = await put(payloads, os.urandom(MIB))
    subject = payloads._objects._meta_subject(name)
    found = await bus.last_stored(STREAM, subject)
    assert found is not None
    await bus.store(subject, json.dumps({**json.loads(found.data), **change}).encode())
    with pytest.raises(PayloadLost):
        await fetched(payloads, name, tmp_path)


async def test_an_object_that_was_overwritten_is_not_what_its_name_says(payloads: Payloads, store: ObjectStore, tmp_path: Path) -> None:
    """An outcome names one result for as long as it is kept, whoever may write to the bucket."""
    name = await put(payloads, b"mine")
    await store.put(name, b"another's")
    with pytest.raises(PayloadLost, match="digest"):
        await fetched(payloads, name, tmp_path)


async def test_a_deleted_object_and_a_link_are_not_fetched(bus: Bus, payloads: Payloads, store: ObjectStore) -> None:
    """A link could point into any bucket of the server."""
    name = await put(payloads, b"x")
    await store.delete(name)
    with pytest.raises(PayloadLost, match="deleted"):
        await payloads.find(name)
    link = {
        "name": "link",
        "bucket": "FAAS_PAYLOADS",
        "nuid": "n",
        "digest": "SHA-256=",
        "options": {"link": {"bucket": "OTHER", "name": "x"}},
    }
    await bus.store(payloads._objects._meta_subject("link"), json.dumps(link).encode())
    with pytest.raises(PayloadLost, match="a link"):
        await payloads.find("link")


async def test_a_full_bucket_refuses_and_keeps_no_half_of_an_object(bus: Bus, payloads: Payloads) -> None:
    """The publisher is told, and what did not fit takes no room from what does."""
    used = (await info(bus))["state"]["bytes"]
    config = (await info(bus))["config"]
    await bus.api(f"STREAM.UPDATE.{STREAM}", {**config, "max_bytes": used + 2 * MIB}, dict)
    try:
        with pytest.raises(StoreRefused, match="maximum bytes"):
            await put(payloads, os.urandom(4 * MIB))

        assert (await info(bus))["state"]["bytes"] == used
        assert await put(payloads, os.urandom(MIB))
    finally:
        await bus.api(f"STREAM.UPDATE.{STREAM}", config, dict)


async def test_a_body_that_shrinks_while_it_is_read_is_no_object(bus: Bus, payloads: Payloads) -> None:
    """A worker that keeps its file open could cut it off."""
    before = (await info(bus))["state"]["bytes"]
    with pytest.raises(PayloadLost):
        await payloads.put(part_of(b"x" * MIB), MIB + 1, prefix="p", kept_s=60)

    assert (await info(bus))["state"]["bytes"] == before


async def test_many_at_once_are_all_whole(payloads: Payloads, tmp_path: Path) -> None:
    """More than may move at once wait for each other; their chunks must not mix."""
    bodies = [os.urandom(MIB + n) for n in range(10)]
    names = await asyncio.gather(*(put(payloads, body) for body in bodies))
    for n, _ in enumerate(names):
        (tmp_path / str(n)).mkdir()
    got = await asyncio.gather(*(fetched(payloads, name, tmp_path / str(n)) for n, name in enumerate(names)))

    assert [hashlib.sha256(body).digest() for body in got] == [hashlib.sha256(body).digest() for body in bodies]


async def test_a_server_with_a_small_limit_gets_small_chunks(tmp_path: Path) -> None:
    """`[bus] max_payload` may be below a chunk."""
    config = type(CONFIG)(sync="default", max_payload_bytes=Size(64 * 1024))
    async with (
        EmbeddedServer.open(config, state=tmp_path, host="127.0.0.1", port=0, token="t") as server,
        Bus.open(server.url, node="n") as bus,
    ):
        await streams.declare(bus, [], config, store_bytes=STORE_BYTES)
        body = os.urandom(MIB)

        assert await fetched(payloads := Payloads(bus), await put(payloads, body), tmp_path) == body


@pytest.mark.timeout(40)
@pytest.mark.timeout(30)  # two restarts, and answers that are awaited for three seconds each
async def test_a_server_that_is_killed_meanwhile_costs_a_second_try_at_most(tmp_path: Path) -> None:
    """What was stored half leaves nothing, and what is read goes on where it was."""
    body = os.urandom(MIB) * 32
    async with (
        EmbeddedServer.open(CONFIG, state=tmp_path, host="127.0.0.1", port=0, token="t") as server,
        Bus.open(server.url, node="n") as bus,
    ):
        await streams.declare(bus, [], CONFIG, store_bytes=STORE_BYTES)
        payloads = Payloads(bus)
        putting = asyncio.ensure_future(put(payloads, body))
        while not (await info(bus))["state"]["messages"]:
            pass
        os.kill(server.pid, signal.SIGKILL)
        try:
            name = await putting
        except BusUnavailable:
            name = await again(lambda: put(payloads, body))
        fetching = asyncio.ensure_future(fetched(payloads, name, tmp_path))
        while not (tmp_path / "body").exists() or not (tmp_path / "body").stat().st_size:
            await bus.fence()
        os.kill(server.pid, signal.SIGKILL)

        assert await fetching == body
        assert (await again(lambda: info(bus)))["state"]["messages"] == len(body) // CHUNK_BYTES + 1


async def again(act: Callable[[], Awaitable[Any]]) -> Any:
    """Until the server is back."""
    while True:
        try:
            return await act()
        except BusUnavailable:
            await asyncio.sleep(0)
