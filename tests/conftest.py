"""What every test on the bus needs: a real nats-server for the session, and a connection to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from faas.bus.connection import Bus
from faas.bus.server import EmbeddedServer
from faas.config import BusConfig


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """An embedded nats-server on a port of its own choice."""
    state = tmp_path_factory.mktemp("bus")
    async with EmbeddedServer.open(BusConfig(sync="default"), state=state, host="127.0.0.1", port=0, token=secrets.token_hex(8)) as server:
        yield server


@pytest.fixture
async def bus(server: EmbeddedServer) -> AsyncIterator[Bus]:
    """A connection of this test alone."""
    async with Bus.open(server.url, node=f"t-{secrets.token_hex(3)}") as bus:
        yield bus


@pytest.fixture
def tenant() -> str:
    """A name that no other test uses: subjects and functions below it are this test's alone."""
    return f"t{secrets.token_hex(4)}"
