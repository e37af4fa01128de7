"""The micro service `faas` as any NATS client sees it: nats-py's own reader of ADR-32 is the oracle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from nats import micro
from nats.micro.service import SEMVER_REGEX, ServiceInfo, ServicePing, ServiceStats

from faas.bus.connection import Bus, Message, NoStream
from faas.bus.service import Service
from faas.version import __version__


@pytest.fixture
async def service(bus: Bus, tenant: str) -> AsyncIterator[Service]:
    async with Service.open(bus, node=f"node-{tenant}", version=__version__) as service:
        yield service


@pytest.mark.parametrize("scope", ["", ".faas", ".faas.{node}"])
async def test_the_service_is_found_by_all_three_names(bus: Bus, service: Service, tenant: str, scope: str) -> None:
    """Tools ask everybody, the kind, or one instance."""
    node = f"node-{tenant}"
    ping = ServicePing.from_dict(json.loads((await bus.request(f"$SRV.PING{scope.format(node=node)}", b"")).data))

    assert (ping.name, ping.id, ping.metadata) == ("faas", node, {"node": node})
    assert SEMVER_REGEX.match(ping.version)


async def test_info_lists_the_endpoints_that_are_there_now(bus: Bus, service: Service, tenant: str) -> None:
    """How a client in any language lists the functions."""
    for name in ("one", "two"):
        await service.add_endpoint(name, f"{tenant}.{name}", lambda _message: None)
    await service.remove_endpoint(f"{tenant}.one")
    info = ServiceInfo.from_dict(json.loads((await bus.request(f"$SRV.INFO.faas.node-{tenant}", b"")).data))

    assert [(e.name, e.subject, e.queue_group, e.metadata) for e in info.endpoints] == [("two", f"{tenant}.two", "q", {})]
    with pytest.raises(NoStream):
        await bus.request(f"{tenant}.one", b"")


async def test_stats_count_requests_errors_and_time(bus: Bus, service: Service, tenant: str) -> None:
    """An operator's first question; the average is of what the dispatcher measured."""
    endpoint = await service.add_endpoint("one", f"{tenant}.one", lambda _message: None)
    endpoint.finished(1000)
    endpoint.finished(3000, "500:no such picture")
    stats = ServiceStats.from_dict(json.loads((await bus.request(f"$SRV.STATS.faas.node-{tenant}", b"")).data))
    seen = stats.endpoints[0]

    assert (seen.num_requests, seen.num_errors, seen.last_error) == (2, 1, "500:no such picture")
    assert (seen.processing_time, seen.average_processing_time) == (4000, 2000)


async def test_the_answers_have_the_keys_of_nats_own_service(bus: Bus, service: Service, tenant: str) -> None:
    """Clients in other languages read them by name."""
    await service.add_endpoint("one", f"{tenant}.one", lambda _message: None)
    assert bus._client is not None
    theirs = await micro.add_service(bus._client, name=f"other{tenant}", version="1.0.0", description="d")

    async def handler(_request: micro.Request) -> None: ...

    await theirs.add_endpoint(name="one", subject=f"{tenant}.theirs", handler=handler)
    try:
        for verb in ("PING", "INFO", "STATS"):
            ours = json.loads((await bus.request(f"$SRV.{verb}.faas.node-{tenant}", b"")).data)
            other = json.loads((await bus.request(f"$SRV.{verb}.other{tenant}", b"")).data)

            assert ours.keys() == other.keys()
            assert ours["type"] == other["type"]
            for mine, their in zip(ours.get("endpoints", []), other.get("endpoints", []), strict=True):
                assert mine.keys() == their.keys()
    finally:
        await theirs.stop()


async def test_requests_of_one_endpoint_run_side_by_side(bus: Bus, service: Service, tenant: str) -> None:
    """nats-py's service would take the second request only once the first has been answered."""
    held: list[Message] = []
    both = asyncio.Event()

    def callback(message: Message) -> None:
        held.append(message)
        if len(held) == 2:
            both.set()

    await service.add_endpoint("one", f"{tenant}.one", callback)
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(bus.request(f"{tenant}.one", b"%d" % n)) for n in range(2)]
        async with asyncio.timeout(5):
            await both.wait()
        for message in reversed(held):
            await bus.publish(message.reply, message.data)

    assert [task.result().data for task in asking] == [b"0", b"1"]


async def test_two_nodes_share_the_requests_of_a_function(bus: Bus, service: Service, tenant: str) -> None:
    """A queue group: each request goes to one of them."""
    taken: list[str] = []

    def taking(name: str) -> None:
        taken.append(name)

    async with Service.open(bus, node=f"second-{tenant}", version=__version__) as second:
        await service.add_endpoint("one", f"{tenant}.one", lambda _message: taking("first"))
        await second.add_endpoint("one", f"{tenant}.one", lambda _message: taking("second"))
        for _ in range(50):
            await bus.publish(f"{tenant}.one", b"")
        await bus.fence()

    assert len(taken) == 50
    assert set(taken) == {"first", "second"}


async def test_a_stopped_service_is_not_found(bus: Bus, tenant: str) -> None:
    """A node that drains must get no more requests, and be listed no longer."""
    async with Service.open(bus, node=f"node-{tenant}", version=__version__) as service:
        await service.add_endpoint("one", f"{tenant}.one", lambda _message: None)
        await service.stop()
        for subject in (f"$SRV.PING.faas.node-{tenant}", f"{tenant}.one"):
            with pytest.raises(NoStream):
                await bus.request(subject, b"")
