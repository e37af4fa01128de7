"""The projection filled from real streams, and the balance: accepted = open + settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from pulling import Deliveries

from faas import subjects
from faas.accounting.following import Follower
from faas.bus.connection import Bus
from faas.bus.consumers import Consumer
from faas.bus.pull import Puller
from faas.identity import invocation_id
from faas.runs import Filter, Run


@pytest.fixture
async def follower(bus: Bus, consumer: Consumer, tmp_path: Path) -> AsyncIterator[Follower]:
    async with Follower.open(bus, tmp_path / "runs.db") as follower:
        yield follower


class Case:
    """One event of a function, taken through its life by hand."""

    def __init__(self, bus: Bus, follower: Follower, tenant: str) -> None:
        self.bus, self.follower, self.tenant = bus, follower, tenant
        self.invocation = invocation_id(tenant, "f", source="FAAS_EVENTS", event_id=f"{tenant}.17")

    async def publish(self) -> None:
        await self.bus.store(f"{self.tenant}.in", b"1", head=f"Nats-Msg-Id: {self.tenant}.17\r\n".encode())

    async def end(self) -> None:
        await self.bus.store(
            subjects.outcome(self.tenant, "f", self.invocation), b"1", head=b"Faas-Outcome: succeeded\r\nFaas-Attempt: 1\r\n"
        )

    async def balance(self) -> tuple[int, int]:
        """(open, imbalance): struck at a look that finds nothing new, and what is missing at the second."""
        for _ in range(3):
            await self.follower.current()
        return self.follower.balance.open[self.tenant, "f"], self.follower.balance.imbalance[self.tenant, "f"]

    async def run(self) -> Run:
        await self.follower.current()
        (run,), _ = await self.follower.projection.runs(Filter(invocation=self.invocation))
        return run


@pytest.fixture
def case(bus: Bus, follower: Follower, tenant: str) -> Case:
    return Case(bus, follower, tenant)


async def test_an_event_is_known_once_somebody_asks(case: Case) -> None:
    """What was stored before the question is in the answer."""
    await case.publish()
    run = await case.run()

    assert (run.outcome, run.subject, run.stream) == ("", f"{case.tenant}.in", "FAAS_EVENTS")


async def test_an_outcome_ends_its_run(case: Case) -> None:
    """By the identity that event and outcome share."""
    await case.publish()
    await case.end()

    assert (await case.run()).outcome == "succeeded"


async def test_garbage_in_a_stream_stops_no_reading(case: Case) -> None:
    """Anybody may publish there."""
    large = b'[{"record_id":"r","invocation_id":"i","attempt":1,"kind":"attempt","tenant":"t","function":"f","cpu_us":%d}]' % (2**70)
    for subject, body in ((subjects.usage(case.tenant, "f"), large), (subjects.usage(case.tenant, "f"), b"{"), (f"{case.tenant}.in", b"x")):
        await case.bus.store(subject, body, head=b"ce-id: %ff\r\nContent-Type: application/cloudevents\r\n")
    await case.bus.store(
        subjects.outcome(case.tenant, "f", "x"), b"\xff", head="Faas-Outcome: failed\r\nFaas-Reason: \xe9\r\n".encode("latin-1")
    )
    await case.publish()
    await case.end()

    assert (await case.run()).outcome == "succeeded"


async def test_an_event_that_waits_is_open_and_balances(case: Case) -> None:
    """Accepted 1, settled 0, open 1."""
    await case.publish()

    assert await case.balance() == (1, 0)


async def test_an_event_that_has_ended_balances(
    case: Case, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup, bus: Bus
) -> None:
    """Accepted 1, settled 1, open 0; between outcome and acknowledgement it is both, which is below 0 and no loss."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await case.publish()
    delivery = await deliveries.next()
    await case.end()
    assert await case.balance() == (1, -1)
    await delivery.ack_sync()

    assert await case.balance() == (0, 0)
    await puller.stop()


async def test_an_event_that_was_acknowledged_without_an_outcome_is_lost_and_shows(
    case: Case, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup, bus: Bus
) -> None:
    """The one thing that must never happen is what the metric is for."""
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await case.publish()
    await (await deliveries.next()).ack_sync()

    assert await case.balance() == (0, 1)
    await puller.stop()


async def test_where_an_event_stands_is_told(
    case: Case, consumer: Consumer, deliveries: Deliveries, group: asyncio.TaskGroup, bus: Bus
) -> None:
    """In the stream, or with a node that got it."""
    await case.publish()
    run = await case.run()
    waiting = await case.follower.place(run)
    puller = await Puller.start(bus, consumer, deliveries, group=group)
    puller.want(1)
    await deliveries.next()
    taken = await case.follower.place(run)
    nobody = await case.follower.place(msgspec.structs.replace(run, function="gone"))
    await puller.stop()

    assert (waiting.delivered, waiting.before, taken.delivered, nobody.served) == (False, 0, True, False)


async def test_a_work_queue_of_somebody_else_stops_no_reading(case: Case, bus: Bus, tenant: str) -> None:
    """It takes no second reader of what a function takes already; what is in all other streams is known as ever."""
    stream = f"QUEUE_{tenant}"
    await bus.api(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{tenant}.queue"], "retention": "workqueue"}, dict)
    config = {"durable_name": "w", "ack_policy": "explicit", "metadata": {"faas-function": f"{tenant}/w"}}
    await bus.api(f"CONSUMER.CREATE.{stream}.w", {"stream_name": stream, "config": config}, dict)
    await bus.store(f"{tenant}.queue", b"1")
    await case.publish()

    assert await case.balance() == (1, 0)
    assert (tenant, "w") not in case.follower.balance.imbalance
    await bus.api(f"STREAM.DELETE.{stream}", None, dict)


async def test_a_restart_reads_only_what_is_new(bus: Bus, consumer: Consumer, tmp_path: Path, tenant: str) -> None:
    """A node that starts does not read a week of streams again."""
    async with Follower.open(bus, tmp_path / "runs.db") as first:
        await Case(bus, first, tenant).publish()
        await first.current()
        before = await first.projection.positions()
    async with Follower.open(bus, tmp_path / "runs.db") as second:
        assert await second.projection.positions() == before
        await Case(bus, second, tenant).end()

        assert (await Case(bus, second, tenant).run()).outcome == "succeeded"


async def test_a_broken_database_stops_nothing(bus: Bus, consumer: Consumer, tmp_path: Path) -> None:
    """It is absent, a question is answered at once, and the node goes on."""
    (tmp_path / "runs.db").write_bytes(b"no database" * 1000)
    async with Follower.open(bus, tmp_path / "runs.db") as follower:
        await follower.current()

        assert "delete" in follower.projection.absent
