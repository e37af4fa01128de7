"""Streams and consumers of the runtime: declared and compared at every start, never silently different.

Knows their configuration and nothing of what is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from faas import subjects
from faas.bus.connection import ApiError, Bus
from faas.bus.cover import cover, durable_subjects, filters, kept
from faas.bus.declared import Source, StreamConfig, declared
from faas.config import BusConfig
from faas.errors import BusUnavailable
from faas.model import FunctionSpec

OWNER = "faas-function"
"""Metadata of a consumer: whose it is."""
ACKS_PENDING = 1000
PULLS_WAITING = 512
NO_STREAM, NO_CONSUMER = 10059, 10014


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
    """A consumer to pull from. `may_repeat`: another consumer of the same function may deliver the same event.

    `floor` is the sequence up to which all was settled when the node started; `config` is what it is made again from
    should it vanish, None where it only drains.
    """

    stream: str
    name: str
    ack_wait_s: float
    may_repeat: bool = False
    floor: int = 0
    config: ConsumerConfig | None = None


class _ConfigSeen(Struct):
    name: str = ""
    subjects: tuple[str, ...] = ()
    retention: str = ""
    storage: str = ""
    discard: str = ""
    max_age: int = 0
    max_bytes: int = -1
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    duplicate_window: int = 0
    num_replicas: int = 1
    allow_direct: bool = False
    sources: tuple[Source, ...] = ()
    allow_msg_schedules: bool = False
    allow_msg_ttl: bool = False


class _State(Struct, frozen=True):
    last_seq: int = 0
    messages: int = 0


class _StreamSeen(Struct):
    config: _ConfigSeen
    state: _State = _State()


class _Place(Struct, frozen=True):
    stream_seq: int = 0


class _ConsumerSeen(Struct):
    name: str
    config: dict[str, Any]
    delivered: _Place = _Place()
    ack_floor: _Place = _Place()
    num_pending: int = 0
    num_ack_pending: int = 0

    @property
    def function(self) -> str:
        """`<tenant>/<function>`, as we wrote it."""
        return str((self.config.get("metadata") or {}).get(OWNER, ""))

    @property
    def filters(self) -> list[str]:
        return [*(self.config.get("filter_subjects") or ()), *filter(None, [self.config.get("filter_subject")])]

    @property
    def has_backlog(self) -> bool:
        return bool(self.num_pending or self.num_ack_pending)


class _ConsumerPage(Struct):
    total: int = 0
    consumers: tuple[_ConsumerSeen, ...] | None = ()


class _Names(Struct):
    streams: tuple[str, ...] | None = ()


class _Anything(Struct):
    pass


async def last_sequence(bus: Bus) -> int:
    """Of FAAS_EVENTS, 0 where it is not there yet. Read before `declare`: a stream takes a new function's subjects before
    its consumer stands, and what is acknowledged in between must be the consumer's too."""
    found = await _stream(bus, subjects.EVENTS)
    return found.state.last_seq if found is not None else 0


async def unsettled(bus: Bus, spec: FunctionSpec) -> list[tuple[str, int]]:
    """Where events of a function may still wait in FAAS_EVENTS: subjects, and behind which sequence of the stream."""
    own = [consumer for consumer in (await _consumers(bus)).values() if consumer.function == _owner(spec)]
    return [(subject, consumer.ack_floor.stream_seq) for consumer in own for subject in consumer.filters]


async def message_count(bus: Bus, stream: str) -> int:
    """How many messages a stream holds, 0 where it is not there."""
    found = await _stream(bus, stream)
    return found.state.messages if found is not None else 0


async def declare(bus: Bus, specs: Sequence[FunctionSpec], config: BusConfig, *, store_bytes: int | None) -> dict[tuple[str, str], str]:
    """Make the streams what they must be; one sentence for each function whose subjects cannot be stored.

    `store_bytes` is what the server may use in all, where that is known. Raises BusUnavailable in the server's words.
    """
    conflicts = {}
    for spec in specs:
        for subject in durable_subjects(spec):
            foreign = await stream_capturing(bus, subject, but=subjects.EVENTS)
            if foreign is not None:
                conflicts[(spec.tenant, spec.name)] = (
                    f"the stream {foreign} captures {subject} already, and consuming from a stream of your own is not supported yet; "
                    'set delivery = "at-most-once", or use another subject'
                )
    usable = [spec for spec in specs if (spec.tenant, spec.name) not in conflicts]
    found = await _stream(bus, subjects.EVENTS)
    own = {_owner(spec) for spec in usable}
    elsewhere = [subject for consumer in (await _consumers(bus)).values() if consumer.function not in own for subject in consumer.filters]
    wanted = [subject for spec in usable for subject in durable_subjects(spec)]
    covered = cover(usable, kept(found.config.subjects, wanted, elsewhere) if found is not None else ())
    conflicts |= covered.conflicts
    for stream in declared(covered.subjects, config, store_bytes):
        if stream.subjects:
            await _ensure_stream(bus, stream)
    return conflicts


def _owner(spec: FunctionSpec) -> str:
    return f"{spec.tenant}/{spec.name}"


async def _stream(bus: Bus, name: str) -> _StreamSeen | None:
    try:
        return await bus.api(f"STREAM.INFO.{name}", None, _StreamSeen)
    except ApiError as error:
        if error.number == NO_STREAM:
            return None
        raise


async def _ensure_stream(bus: Bus, wanted: StreamConfig) -> None:
    seen = await _stream(bus, wanted.name)
    try:
        if seen is None:
            await bus.api(f"STREAM.CREATE.{wanted.name}", wanted, _Anything)
        elif _differs(wanted, seen.config):
            # Read, change, write: what an administrator has set besides stays.
            whole = (await bus.api(f"STREAM.INFO.{wanted.name}", None, dict[str, Any]))["config"]
            await bus.api(f"STREAM.UPDATE.{wanted.name}", {**whole, **msgspec.to_builtins(wanted)}, _Anything)
    except ApiError as error:
        raise BusUnavailable(f"the stream {wanted.name} cannot be made as it must be: {error.description}") from error


def _differs(wanted: StreamConfig, seen: _ConfigSeen) -> bool:
    own = {**msgspec.to_builtins(wanted), "subjects": set(wanted.subjects)}
    return any(own[name] != value for name, value in {**msgspec.to_builtins(seen), "subjects": set(seen.subjects)}.items())


async def stream_capturing(bus: Bus, subject: str, *, but: str = "") -> str | None:
    """The stream that stores a subject, or a part of what it matches; `but` does not count."""
    names = (await bus.api("STREAM.NAMES", {"subject": subject}, _Names)).streams or ()
    return next((name for name in names if name != but), None)


async def ensure_consumers(
    bus: Bus, specs: Iterable[FunctionSpec], config: BusConfig, *, first_sequence: int | None = None
) -> dict[tuple[str, str], list[Consumer]]:
    """The consumers to pull each function from: its own, made where it is missing, and older ones with another filter while they have a backlog.

    A new one begins at `first_sequence` of the stream, None: at what comes next. Raises BusUnavailable in the server's words.
    """
    stream = await _stream(bus, subjects.EVENTS)
    last = stream.state.last_seq if stream is not None else 0
    seen = await _consumers(bus)
    found = {}
    for spec in specs:
        wanted = _consumer(spec, config)
        own = await _ensure_consumer(bus, wanted, seen.get(wanted.durable_name), first_sequence=first_sequence)
        draining = []
        for other in [o for o in seen.values() if o.function == _owner(spec) and o.name != wanted.durable_name]:
            # Read again: what came in before the new consumer stood is with the old one alone.
            if (await bus.api(f"CONSUMER.INFO.{subjects.EVENTS}.{other.name}", None, _ConsumerSeen)).has_backlog:
                draining.append(Consumer(stream=subjects.EVENTS, name=other.name, ack_wait_s=config.ack_wait_s, may_repeat=True))
            else:
                await bus.api(f"CONSUMER.DELETE.{subjects.EVENTS}.{other.name}", None, _Anything)
        floor = own.ack_floor.stream_seq if own.has_backlog else max(last, own.delivered.stream_seq)
        mine = Consumer(
            stream=subjects.EVENTS,
            name=own.name,
            ack_wait_s=config.ack_wait_s,
            may_repeat=bool(draining),
            floor=floor,
            config=wanted,
        )
        found[(spec.tenant, spec.name)] = [mine, *draining]
    return found


async def restore_consumer(bus: Bus, consumer: Consumer, floor: int) -> bool:
    """Make a consumer that has vanished again, behind `floor`; the outcome guard absorbs what it delivers twice.

    False: it only drained, and is not needed. Raises ApiError where its stream is gone too, BusUnavailable.
    """
    try:
        await bus.api(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}", None, _Anything)
    except ApiError as error:
        if error.number != NO_CONSUMER:
            raise
    else:
        return True
    if consumer.config is None:
        return False
    config = {**msgspec.to_builtins(consumer.config), "deliver_policy": "by_start_sequence", "opt_start_seq": floor + 1}
    await _write_consumer(bus, consumer.name, config)
    return True


async def _consumers(bus: Bus) -> dict[str, _ConsumerSeen]:
    found: dict[str, _ConsumerSeen] = {}
    while True:
        try:
            page = await bus.api(f"CONSUMER.LIST.{subjects.EVENTS}", {"offset": len(found)}, _ConsumerPage)
        except ApiError as error:
            if error.number == NO_STREAM:
                return {}
            raise
        found |= {consumer.name: consumer for consumer in page.consumers or ()}
        if not page.consumers or len(found) >= page.total:
            return found


def _consumer(spec: FunctionSpec, config: BusConfig) -> ConsumerConfig:
    """Named after its filter: another filter makes another consumer, and the old one drains."""
    filtered = tuple(filters(spec))
    digest = hashlib.sha256("\n".join(filtered).encode()).hexdigest()[:8]
    return ConsumerConfig(
        durable_name=f"{spec.tenant}-{spec.name}-{digest}",
        filter_subjects=filtered,
        ack_wait=round(config.ack_wait_s * 1e9),
        metadata={OWNER: _owner(spec)},
    )


async def _ensure_consumer(bus: Bus, wanted: ConsumerConfig, seen: _ConsumerSeen | None, *, first_sequence: int | None) -> _ConsumerSeen:
    if seen is None:
        start = {} if first_sequence is None else {"deliver_policy": "by_start_sequence", "opt_start_seq": first_sequence}
        return await _write_consumer(bus, wanted.durable_name, {**msgspec.to_builtins(wanted), **start})
    changes = {name: getattr(wanted, name) for name in ("ack_wait", "max_ack_pending", "max_deliver")}
    if any(seen.config.get(name) != value for name, value in changes.items()):
        return await _write_consumer(bus, seen.name, {**seen.config, **changes})
    return seen


async def _write_consumer(bus: Bus, name: str, config: Mapping[str, object]) -> _ConsumerSeen:
    try:
        return await bus.api(f"CONSUMER.CREATE.{subjects.EVENTS}.{name}", {"stream_name": subjects.EVENTS, "config": config}, _ConsumerSeen)
    except ApiError as error:
        raise BusUnavailable(f"the consumer {name} cannot be made as it must be: {error.description}") from error
