"""Reading a bus without leaving anything behind: its server, and the newest messages of one subject among others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from faas.bus.inspection import newest, server
from faas.bus.server import EmbeddedServer
from faas.errors import BusUnavailable

TOKEN_STREAM = "INSPECTED"


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[Client]:
    """A connection, and a stream in which two subjects alternate."""
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(name=TOKEN_STREAM, subjects=["inspected.*"], allow_direct=True)
    for number in range(30):
        await stream.publish(f"inspected.{'a' if number % 3 else 'b'}", str(number).encode())
    yield client
    await stream.delete_stream(TOKEN_STREAM)
    await client.close()


@pytest.mark.parametrize("limit", [1, 3, 9, 10, 11, 500])
async def test_the_newest_of_a_subject_come_oldest_first(client: Client, limit: int) -> None:
    """Whatever lies between them, and never more than asked for."""
    found = await newest(client, TOKEN_STREAM, "inspected.b", limit=limit)

    assert [int(message.data) for message in found] == list(range(0, 30, 3))[-limit:]


async def test_a_subject_without_messages_has_none(client: Client) -> None:
    """A function that never ran."""
    assert await newest(client, TOKEN_STREAM, "inspected.c", limit=5) == []


async def test_messages_that_were_deleted_are_passed_over(client: Client) -> None:
    """A stream may have holes where its limits took something."""
    await client.jetstream().delete_msg(TOKEN_STREAM, 28)

    assert [int(message.data) for message in await newest(client, TOKEN_STREAM, "inspected.b", limit=2)] == [21, 24]


async def test_a_stream_that_is_not_there_is_told(client: Client) -> None:
    """No node has ever run on this bus."""
    with pytest.raises(BusUnavailable, match="is a node running"):
        await newest(client, "NOSUCH", "inspected.b", limit=2)


async def test_the_server_says_its_version_and_whether_it_stores(client: Client) -> None:
    """What `faas doctor --nats` asks first."""
    version, has_jetstream = await server(client)

    assert version.split(".")[0] == "2"
    assert has_jetstream
