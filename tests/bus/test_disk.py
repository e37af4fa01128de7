"""What follows from a look at the disk, on a server of its own; a disk that is really full is a test of `chaos/`."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pulling import CONFIG, STORE_BYTES, a_function

from faas import subjects
from faas.bus import disk, streams
from faas.bus.connection import Bus
from faas.bus.disk import DiskWatch
from faas.bus.server import EmbeddedServer
from faas.config import BusConfig
from faas.errors import StoreRefused


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer.open(
        BusConfig(sync="default"), state=tmp_path, host="127.0.0.1", port=0, token=secrets.token_hex(8)
    ) as server:
        yield server


@pytest.fixture
async def events(bus: Bus) -> None:
    """FAAS_EVENTS with ten events in it."""
    await streams.declare(bus, [a_function("default", "f", "disk.in")], CONFIG, store_bytes=STORE_BYTES)
    for _ in range(10):
        await bus.store("disk.in", bytes(1000))


def short(monkeypatch: pytest.MonkeyPatch, folder: Path, *, yes: bool) -> None:
    """Whether the disk counts as low: its bounds are above, or below, whatever is free."""
    free = shutil.disk_usage(folder).free
    monkeypatch.setattr(disk, "LOW_BYTES", 2 * free if yes else 1)
    monkeypatch.setattr(disk, "BACK_BYTES", 2 * free if yes else 1)


async def state(bus: Bus) -> Any:
    return await bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict)


async def test_on_a_low_disk_events_are_refused_and_none_is_lost(
    server: EmbeddedServer, bus: Bus, events: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settling what is there takes space too: outcomes, usage, acknowledgements."""
    watch, before = DiskWatch(server, bus), await state(bus)
    short(monkeypatch, server.folder, yes=True)
    for _ in range(2):
        await watch.look()
        with pytest.raises(StoreRefused, match="maximum bytes exceeded"):
            await bus.store("disk.in", b"")
    await bus.store(subjects.outcome("default", "f", "i"), bytes(1000))

    assert "space on the disk" in watch.problem
    assert (await state(bus))["state"]["messages"] == before["state"]["messages"]


async def test_with_space_again_events_are_taken_up_to_the_bound_of_before(
    server: EmbeddedServer, bus: Bus, events: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to declare anything again, and the server need not be restarted where no write failed."""
    watch, before, pid = DiskWatch(server, bus), await state(bus), server.pid
    for low in (True, True, False, False):
        short(monkeypatch, server.folder, yes=low)
        await watch.look()
    await bus.store("disk.in", b"after")

    assert watch.problem == ""
    assert (await state(bus))["config"] == before["config"]
    assert server.pid == pid


async def test_a_server_that_said_its_disk_was_full_is_restarted_once_there_is_space(
    server: EmbeddedServer, bus: Bus, events: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may have been full between two looks; its streams would let publishers wait until somebody restarts it."""
    watch, before, pid = DiskWatch(server, bus), await state(bus), server.pid
    short(monkeypatch, server.folder, yes=False)
    with (server.folder / "server.log").open("a") as log:
        log.write("[ERR] Filestore [FAAS_EVENTS] Critical write error: write 1.blk: no space left on device\n")
    await watch.look()
    await bus.store("disk.in", b"after")

    assert server.pid not in (0, pid)
    assert (await state(bus))["state"]["messages"] == before["state"]["messages"] + 1
    restarted = server.pid
    await watch.look()
    assert server.pid == restarted
