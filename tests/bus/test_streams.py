"""Streams and consumers on a real server: declared once, compared at every start, never silently different."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from pulling import CONFIG, STORE_BYTES, Deliveries, a_function

from faas import subjects
from faas.bus import consumers, streams
from faas.bus.connection import Bus
from faas.bus.declared import declared
from faas.bus.pull import Puller
from faas.errors import BusUnavailable
from faas.units import Duration


async def info(bus: Bus, name: str) -> dict[str, Any]:
    return await bus.api(f"STREAM.INFO.{name}", None, dict)


async def consumers_of(bus: Bus, tenant: str) -> list[str]:
    found = await bus.api(f"CONSUMER.NAMES.{subjects.EVENTS}", {}, dict)
    return [name for name in found["consumers"] or [] if name.startswith(tenant)]


async def test_the_streams_are_what_the_contract_says(bus: Bus, tenant: str) -> None:
    """Ages, bounds and what happens when they are full: other programs and operators rely on them."""
    await streams.declare(bus, [a_function(tenant, "f", f"{tenant}.in")], CONFIG, store_bytes=STORE_BYTES)
    events, outcomes, usage, dead = [
        (await info(bus, name))["config"] for name in ("FAAS_EVENTS", "FAAS_OUTCOMES", "FAAS_USAGE", "FAAS_DEAD")
    ]
    day_ns = 86_400 * 10**9

    assert {f"{tenant}.in", f"faas.submit.{tenant}.f"} <= set(events["subjects"])
    assert (events["max_age"], events["duplicate_window"], events["discard"]) == (8 * day_ns, 120 * 10**9, "new")
    assert (outcomes["max_age"], outcomes["max_msgs"], outcomes["max_msgs_per_subject"]) == (day_ns, 500_000, 1)
    assert outcomes["allow_direct"]
    assert (usage["max_age"], dead["max_age"]) == (400 * day_ns, 14 * day_ns)
    assert all(stream["retention"] == "limits" and stream["max_bytes"] > 0 for stream in (events, outcomes, usage, dead))
    assert sum(stream["max_bytes"] for stream in (events, outcomes, usage, dead)) < STORE_BYTES


async def test_declaring_twice_writes_nothing(bus: Bus, tenant: str) -> None:
    """An update of a stream costs a fleet its stream leader's time, and clobbers what others do meanwhile."""
    specs = [a_function(tenant, "f", f"{tenant}.in")]
    await streams.declare(bus, specs, CONFIG, store_bytes=STORE_BYTES)
    await consumers.ensure_consumers(bus, specs, CONFIG)
    written: list[str] = []
    for subject in ("$JS.API.STREAM.UPDATE.*", "$JS.API.STREAM.CREATE.*", "$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DELETE.>"):
        await bus.subscribe(subject, lambda message: written.append(message.subject))
    await streams.declare(bus, specs, CONFIG, store_bytes=STORE_BYTES)
    await consumers.ensure_consumers(bus, specs, CONFIG)
    await bus.fence()

    assert written == []


async def test_what_differs_is_updated_and_what_an_operator_added_stays(bus: Bus, tenant: str) -> None:
    """A new version of this package may change a bound; a description of an operator is none of its business."""
    specs = [a_function(tenant, "f", f"{tenant}.in")]
    await streams.declare(bus, specs, CONFIG, store_bytes=STORE_BYTES)
    config = (await info(bus, subjects.DEAD))["config"]
    await bus.api(f"STREAM.UPDATE.{subjects.DEAD}", {**config, "description": "mine", "max_age": 10**12}, dict)
    await streams.declare(bus, specs, CONFIG, store_bytes=STORE_BYTES)
    after = (await info(bus, subjects.DEAD))["config"]

    assert after == {**config, "description": "mine"}


async def test_what_may_not_change_is_an_error_in_the_servers_words(bus: Bus, tenant: str) -> None:
    """A stream of that name with another storage: starting on it silently would break a promise."""
    await streams.declare(bus, [a_function(tenant, "f", f"{tenant}.in")], CONFIG, store_bytes=STORE_BYTES)
    kept = (await info(bus, subjects.DEAD))["config"]
    await bus.api(f"STREAM.DELETE.{subjects.DEAD}", None, dict)
    await bus.api(
        f"STREAM.CREATE.{subjects.DEAD}",
        {"name": subjects.DEAD, "subjects": ["faas.dead.>"], "storage": "memory", "max_bytes": 2**20},
        dict,
    )
    with pytest.raises(BusUnavailable, match=r"FAAS_DEAD cannot be made as it must be: .*storage"):
        await streams.declare(bus, [], CONFIG, store_bytes=STORE_BYTES)

    await bus.api(f"STREAM.DELETE.{subjects.DEAD}", None, dict)
    await bus.api(f"STREAM.CREATE.{subjects.DEAD}", kept, dict)


async def test_subjects_registered_before_stay(bus: Bus, tenant: str) -> None:
    """Another node may serve them."""
    await streams.declare(bus, [a_function(tenant, "f", f"{tenant}.one")], CONFIG, store_bytes=STORE_BYTES)
    await streams.declare(bus, [a_function(tenant, "g", f"{tenant}.two")], CONFIG, store_bytes=STORE_BYTES)

    assert {f"{tenant}.one", f"{tenant}.two"} <= set((await info(bus, subjects.EVENTS))["config"]["subjects"])


async def test_an_edited_trigger_that_overlaps_its_old_self_in_part_is_taken(bus: Bus, tenant: str) -> None:
    """The old one is nobody's; the author must not be told that he conflicts with himself, and his backlog still runs."""
    before, after = a_function(tenant, "f", f"{tenant}.*.c"), a_function(tenant, "f", f"{tenant}.b.*")
    await streams.declare(bus, [before], CONFIG, store_bytes=STORE_BYTES)
    await consumers.ensure_consumers(bus, [before], CONFIG)
    await bus.store(f"{tenant}.x.c", b"waits")

    assert await streams.declare(bus, [after], CONFIG, store_bytes=STORE_BYTES) == {}
    own, old = (await consumers.ensure_consumers(bus, [after], CONFIG))[tenant, "f"]
    assert (own.may_repeat, old.may_repeat) == (True, True)
    assert (await bus.store(f"{tenant}.b.d", b"")).stream == subjects.EVENTS


async def test_a_subject_of_a_function_elsewhere_wins_over_a_new_one(bus: Bus, tenant: str) -> None:
    """Its consumer shows that it is in use; its events must not be lost to a function that came later."""
    elsewhere = a_function(f"{tenant}x", "g", f"{tenant}.*.c")
    await streams.declare(bus, [elsewhere], CONFIG, store_bytes=STORE_BYTES)
    await consumers.ensure_consumers(bus, [elsewhere], CONFIG)
    conflicts = await streams.declare(bus, [a_function(tenant, "f", f"{tenant}.b.*")], CONFIG, store_bytes=STORE_BYTES)

    assert f"{tenant}.*.c of a function elsewhere" in conflicts[tenant, "f"]


@pytest.mark.parametrize(("theirs", "trigger"), [("in", "in"), ("*", "in"), ("in", "*"), ("a.>", "*.b")])
async def test_a_subject_in_a_stream_of_the_users_makes_the_function_invalid(bus: Bus, tenant: str, theirs: str, trigger: str) -> None:
    """Two streams cannot hold one subject (10065); one sentence for this function, and the others start."""
    await bus.api(f"STREAM.CREATE.{tenant}", {"name": tenant, "subjects": [f"{tenant}.{theirs}"], "max_bytes": 2**16}, dict)
    specs = [a_function(tenant, "f", f"{tenant}.{trigger}"), a_function(tenant, "g", f"{tenant}x.in")]
    conflicts = await streams.declare(bus, specs, CONFIG, store_bytes=STORE_BYTES)

    assert list(conflicts) == [(tenant, "f")]
    assert f"the stream {tenant} captures" in conflicts[tenant, "f"]
    assert f'stream = "{tenant}"' in conflicts[tenant, "f"]


async def test_a_new_function_starts_with_new_events(bus: Bus, tenant: str) -> None:
    """Registering on a subject with a week of history must not run it all."""
    other = a_function(tenant, "other", f"{tenant}.in")
    await streams.declare(bus, [other], CONFIG, store_bytes=STORE_BYTES)
    await bus.store(f"{tenant}.in", b"old")
    consumer = (await consumers.ensure_consumers(bus, [a_function(tenant, "f", f"{tenant}.in")], CONFIG))[tenant, "f"][0]
    seen = await bus.api(f"CONSUMER.INFO.{subjects.EVENTS}.{consumer.name}", None, dict)

    assert seen["num_pending"] == 0
    assert consumer.floor == (await info(bus, subjects.EVENTS))["state"]["last_seq"]


async def test_a_changed_ack_wait_reaches_the_consumer_that_is_there(bus: Bus, tenant: str) -> None:
    """nats-py's own subscribe ignores it; crash detection would keep the old time without a word."""
    specs = [a_function(tenant, "f", f"{tenant}.in")]
    await streams.declare(bus, specs, CONFIG, store_bytes=STORE_BYTES)
    await consumers.ensure_consumers(bus, specs, CONFIG)
    slower = msgspec.structs.replace(CONFIG, ack_wait_s=Duration(7))
    consumer = (await consumers.ensure_consumers(bus, specs, slower))[tenant, "f"][0]
    seen = await bus.api(f"CONSUMER.INFO.{subjects.EVENTS}.{consumer.name}", None, dict)

    assert seen["config"]["ack_wait"] == 7 * 10**9
    assert seen["config"]["deliver_policy"] == "new"


async def test_a_changed_filter_makes_a_new_consumer_and_the_old_one_goes_once_it_is_drained(
    bus: Bus, tenant: str, group: asyncio.TaskGroup, deliveries: Deliveries
) -> None:
    """Deleting it at once lost all that waited."""
    before, after = a_function(tenant, "f", f"{tenant}.one"), a_function(tenant, "f", f"{tenant}.two")
    await streams.declare(bus, [before, after], CONFIG, store_bytes=STORE_BYTES)
    await consumers.ensure_consumers(bus, [before], CONFIG)
    await bus.store(f"{tenant}.one", b"waits")
    own, old = (await consumers.ensure_consumers(bus, [after], CONFIG))[tenant, "f"]
    puller = await Puller.start(bus, old, deliveries, group=group)
    puller.want(1)
    delivery = await deliveries.next()
    await delivery.ack_sync()
    await puller.stop()

    assert delivery.data == b"waits"
    assert (await consumers.ensure_consumers(bus, [after], CONFIG))[tenant, "f"] == [msgspec.structs.replace(own, may_repeat=False)]
    assert await consumers_of(bus, tenant) == [own.name]


def test_all_streams_together_fit_into_what_the_server_may_store() -> None:
    """On a small disk the last one could not be made otherwise, and the node would not start."""
    bounds = [stream.max_bytes for stream in declared(["a"], CONFIG, STORE_BYTES) if stream.max_bytes > 0]

    assert sum(bounds) <= STORE_BYTES


async def test_nodes_take_up_a_changed_trigger_side_by_side(bus: Bus, tenant: str) -> None:
    """Each finds the old consumer, and one is faster to delete it: the others start all the same."""
    for subject in (f"{tenant}.before", f"{tenant}.after"):
        spec = a_function(tenant, "f", subject)
        await streams.declare(bus, [spec], CONFIG, store_bytes=STORE_BYTES)
        found = await asyncio.gather(*(consumers.ensure_consumers(bus, [spec], CONFIG) for _ in range(8)))

        assert {consumer.name for each in found for consumer in each[tenant, "f"] if consumer.config is not None} == {
            found[0][tenant, "f"][0].name
        }
