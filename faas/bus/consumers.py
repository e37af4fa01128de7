"""The durable pull consumers of functions: made, compared, drained, made again, and deleted with what waits for them.

Knows how they are configured, and nothing of what is in a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec
from msgspec import Struct

from faas import subjects
from faas.bus.connection import ApiError, Bus
from faas.bus.cover import borrowed_subjects, filters
from faas.bus.listing import NO_CONSUMER, OWNER, REMADE, ConsumerSeen, consumers_of, owner
from faas.bus.streams import find_stream
from faas.config import BusConfig
from faas.errors import BusUnavailable
from faas.model import FunctionSpec

ACKS_PENDING = 1000
PULLS_WAITING = 512


class ConsumerConfig(Struct, frozen=True, kw_only=True):
    """What is declared of a function's durable pull consumer."""

    durable_name: str
    filter_subjects: tuple[str, ...]
    ack_wait: int
    metadata: dict[str, str]
    deliver_policy: str = "new"
    ack_policy: str = "explicit"
    replay_policy: str = "instant"
    max_deliver: int = -1
    max_ack_pending: int = ACKS_PENDING
    max_waiting: int = PULLS_WAITING
    num_replicas: int = 0


class Consumer(Struct, frozen=True, kw_only=True):
    """A consumer to pull from. `may_repeat`: another consumer of the same function may deliver the same event; of those up to the
    sequence `repeats_upto` one of the same name may have, before it vanished.

    `floor` is the sequence up to which all was settled when the node started; `config` is what it is made again from
    should it vanish, None where it only drains.
    """

    stream: str
    name: str
    ack_wait_s: float
    may_repeat: bool = False
    repeats_upto: int = 0
    floor: int = 0
    config: ConsumerConfig | None = None


class _Anything(Struct):
    pass


async def ensure_consumers(
    bus: Bus, specs: Iterable[FunctionSpec], config: BusConfig, *, first_sequence: int | None = None
) -> dict[tuple[str, str], list[Consumer]]:
    """The consumers to pull each function from: its own on each stream, made where one is missing, and older ones with another filter while they have a backlog.

    A new one begins at `first_sequence` of FAAS_EVENTS, None: at what comes next. Raises BusUnavailable in the server's words.
    """
    filtered: dict[str, list[tuple[FunctionSpec, tuple[str, ...]]]] = {}
    for spec in specs:
        filtered.setdefault(subjects.EVENTS, []).append((spec, tuple(filters(spec))))
        for stream, borrowed in borrowed_subjects(spec).items():
            filtered.setdefault(stream, []).append((spec, tuple(borrowed)))
    found: dict[tuple[str, str], list[Consumer]] = {}
    for stream, wanted in filtered.items():
        seen, state = await consumers_of(bus, stream), await find_stream(bus, stream)
        for spec, own in wanted:
            start = {} if first_sequence is None or stream != subjects.EVENTS else _from_sequence(first_sequence)
            if state is not None and state.config.retention == "workqueue":
                start = {"deliver_policy": "all"}  # such a stream takes no other, and forgets what is acknowledged
            consumer = _consumer(spec, own, config)
            last = state.state.last_seq if state is not None else 0
            found.setdefault((spec.tenant, spec.name), []).extend(
                await _ensure_on(bus, stream, consumer, seen=seen, start=start, last=last)
            )
    return found


def _from_sequence(sequence: int) -> dict[str, object]:
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": sequence}


async def _ensure_on(
    bus: Bus, stream: str, wanted: ConsumerConfig, *, seen: Mapping[str, ConsumerSeen], start: Mapping[str, object], last: int
) -> list[Consumer]:
    """A function's own consumer on a stream, whose last sequence was `last`, and those that still drain."""
    own = await _ensure_consumer(bus, stream, wanted, seen=seen.get(wanted.durable_name), start=start)
    ack_wait_s = wanted.ack_wait / 1e9
    draining = []
    for other in [o for o in seen.values() if o.function == wanted.metadata[OWNER] and o.name != wanted.durable_name]:
        # Read again: what came in before the new consumer stood is with the old one alone.
        try:
            if (await bus.api(f"CONSUMER.INFO.{stream}.{other.name}", None, ConsumerSeen)).has_backlog:
                draining.append(Consumer(stream=stream, name=other.name, ack_wait_s=ack_wait_s, may_repeat=True))
            else:
                await bus.api(f"CONSUMER.DELETE.{stream}.{other.name}", None, _Anything)
        except ApiError as error:
            if error.number != NO_CONSUMER:  # another node takes up the same change, and was faster
                raise
    floor = own.ack_floor.stream_seq if own.has_backlog else max(last, own.delivered.stream_seq)
    mine = Consumer(
        stream=stream,
        name=own.name,
        ack_wait_s=ack_wait_s,
        may_repeat=bool(draining),
        repeats_upto=own.repeats_upto,
        floor=floor,
        config=wanted,
    )
    return [mine, *draining]


async def restore_consumer(bus: Bus, consumer: Consumer, floor: int) -> int | None:
    """Make a consumer that has vanished again, behind `floor`. Returns its `repeats_upto`: what it delivers up to there has to be looked up,
    since it counts deliveries anew.

    None: it only drained, and is not needed. Raises ApiError where its stream is gone too, BusUnavailable.
    """
    try:
        return (await bus.api(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}", None, ConsumerSeen)).repeats_upto
    except ApiError as error:
        if error.number != NO_CONSUMER:
            raise
    if consumer.config is None:
        return None
    state = await find_stream(bus, consumer.stream)
    last = state.state.last_seq if state is not None else 0
    metadata = {**consumer.config.metadata, REMADE: str(last)}
    config = {**msgspec.to_builtins(consumer.config), **_from_sequence(floor + 1), "metadata": metadata}
    await _write_consumer(bus, consumer.stream, config)
    return last


def _consumer(spec: FunctionSpec, filtered: tuple[str, ...], config: BusConfig) -> ConsumerConfig:
    """Named after its filter: another filter makes another consumer, and the old one drains."""
    digest = hashlib.sha256("\n".join(filtered).encode()).hexdigest()[:8]
    return ConsumerConfig(
        durable_name=f"{spec.tenant}-{spec.name}-{digest}",
        filter_subjects=filtered,
        ack_wait=round(config.ack_wait_s * 1e9),
        metadata={OWNER: owner(spec.tenant, spec.name)},
    )


async def _ensure_consumer(
    bus: Bus, stream: str, wanted: ConsumerConfig, *, seen: ConsumerSeen | None, start: Mapping[str, object]
) -> ConsumerSeen:
    if seen is None:
        return await _write_consumer(bus, stream, {**msgspec.to_builtins(wanted), **start})
    changes = {name: getattr(wanted, name) for name in ("ack_wait", "max_ack_pending", "max_deliver")}
    if any(seen.config.get(name) != value for name, value in changes.items()):
        return await _write_consumer(bus, stream, {**seen.config, **changes})
    return seen


async def _write_consumer(bus: Bus, stream: str, config: Mapping[str, object]) -> ConsumerSeen:
    try:
        return await bus.api(f"CONSUMER.CREATE.{stream}.{config['durable_name']}", {"stream_name": stream, "config": config}, ConsumerSeen)
    except ApiError as error:
        raise BusUnavailable(f"the consumer {config['durable_name']} cannot be made as it must be: {error.description}") from error


async def unsettled(bus: Bus, spec: FunctionSpec) -> list[tuple[str, str, int]]:
    """Where events of a function may still wait: streams, subjects, and behind which sequence of the stream."""
    whose = owner(spec.tenant, spec.name)
    found = []
    for stream in dict.fromkeys([subjects.EVENTS, *(trigger.stream for trigger in spec.triggers if trigger.stream)]):
        own = [consumer for consumer in (await consumers_of(bus, stream)).values() if consumer.function == whose]
        found += [(stream, subject, consumer.ack_floor.stream_seq) for consumer in own for subject in consumer.filters]
    return found


async def waiting_for(bus: Bus, tenant: str, name: str, *, borrowed: Iterable[str] = ()) -> int:
    """How many events wait for a function, or run, on FAAS_EVENTS and on these streams of the user's."""
    streams = [await consumers_of(bus, stream) for stream in (subjects.EVENTS, *borrowed)]
    own = [consumer for found in streams for consumer in found.values() if consumer.function == owner(tenant, name)]
    return sum(consumer.num_pending + consumer.num_ack_pending for consumer in own)


async def drop_consumers(bus: Bus, tenant: str, name: str, *, borrowed: Iterable[str] = ()) -> int:
    """Delete the consumers of a function, and with them what waits for it, on FAAS_EVENTS and on these streams of the user's; how much waited."""
    waited = 0
    for stream in (subjects.EVENTS, *borrowed):
        for consumer in (await consumers_of(bus, stream)).values():
            if consumer.function == owner(tenant, name):
                waited += consumer.num_pending + consumer.num_ack_pending
                with suppress(ApiError):  # somebody else was faster
                    await bus.api(f"CONSUMER.DELETE.{stream}.{consumer.name}", None, _Anything)
    return waited
