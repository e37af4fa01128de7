"""Streams of the runtime: declared and compared at every start, never silently different.

Knows their configuration and nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from faas import subjects
from faas.bus.connection import ApiError, Bus
from faas.bus.cover import borrowed_subjects, cover, durable_subjects, kept, left
from faas.bus.declared import Source, StreamConfig, declared
from faas.bus.listing import NO_STREAM, consumers_of, owner
from faas.config import BusConfig
from faas.errors import BusUnavailable
from faas.model import FunctionSpec

NO_ROOM = 10047
"""JetStream's number where a stream may hold more than the server has left for all."""


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
    allow_rollup_hdrs: bool = False
    sources: tuple[Source, ...] = ()
    allow_msg_schedules: bool = False
    allow_msg_ttl: bool = False
    deny_delete: bool = False


class _State(Struct, frozen=True):
    last_seq: int = 0


class _StreamSeen(Struct):
    config: _ConfigSeen
    state: _State = _State()
    created: str = ""


class _Names(Struct):
    streams: tuple[str, ...] | None = ()


class _Anything(Struct):
    pass


async def last_sequence(bus: Bus) -> int:
    """Of FAAS_EVENTS, 0 where it is not there yet. Read before `declare`: a stream takes a new function's subjects before
    its consumer stands, and what is acknowledged in between must be the consumer's too."""
    found = await find_stream(bus, subjects.EVENTS)
    return found.state.last_seq if found is not None else 0


async def declare(bus: Bus, specs: Sequence[FunctionSpec], config: BusConfig, *, store_bytes: int | None) -> dict[tuple[str, str], str]:
    """Make the streams what they must be; one sentence for each function whose subjects cannot be stored.

    `store_bytes` is what the server may use in all, where that is known; else streams that are there keep their bounds, which somebody set who knew.
    Raises BusUnavailable in the server's words.
    """
    conflicts = {}
    for spec in specs:
        for subject in durable_subjects(spec):
            foreign = await stream_capturing(bus, subject, but=subjects.EVENTS)
            if foreign is not None:
                conflicts[(spec.tenant, spec.name)] = (
                    f'the stream {foreign} captures {subject} already; take it from there with stream = "{foreign}", '
                    'set delivery = "at-most-once", or use another subject'
                )
        for name, borrowed in borrowed_subjects(spec).items():
            if problem := await _problem_with(bus, name, borrowed):
                conflicts[(spec.tenant, spec.name)] = problem
    usable = [spec for spec in specs if (spec.tenant, spec.name) not in conflicts]
    found = await find_stream(bus, subjects.EVENTS)
    own = {owner(spec.tenant, spec.name) for spec in usable}
    elsewhere = [
        subject
        for consumer in (await consumers_of(bus, subjects.EVENTS)).values()
        if consumer.function not in own
        for subject in consumer.filters
    ]
    wanted = [subject for spec in usable for subject in durable_subjects(spec)]
    covered = cover(usable, kept(found.config.subjects, wanted, elsewhere) if found is not None else ())
    conflicts |= covered.conflicts
    for stream in declared(covered.subjects, config, store_bytes):
        if stream.subjects:
            asked = stream.name == subjects.EVENTS and config.max_bytes != BusConfig().max_bytes
            await ensure_stream(bus, stream, bounded=store_bytes is not None or asked)
    return conflicts


async def _problem_with(bus: Bus, stream: str, wanted: Iterable[str]) -> str:
    """Why a stream of the user's cannot give these subjects; "" where it can. It is never made, changed or purged by us."""
    try:
        found = await find_stream(bus, stream)
    except BusUnavailable:
        if not bus.connected:
            raise
        # One function may not hold up the others: the server says nothing to whoever may not ask.
        return f"the bus does not answer this node about the stream {stream}; where it knows users, type faas nats-config --stream {stream}"
    if found is None:
        return f"there is no stream {stream} on this bus; create it, or leave stream out"
    for subject in wanted:
        if not any(subjects.contains(taken, subject) for taken in found.config.subjects):
            return f"the stream {stream} does not take all of {subject}; it takes {', '.join(found.config.subjects) or 'none of its own'}"
    return ""


async def uncover(bus: Bus, withdrawn: Collection[str]) -> None:
    """Have FAAS_EVENTS take no more of what only these functions took, each `owner(...)`: their consumers and what waits for them stay."""
    found = await find_stream(bus, subjects.EVENTS)
    if found is None or not withdrawn:
        return
    leaving = [subjects.submit(*whose.split("/")) for whose in withdrawn]
    needed: list[str] = []
    for consumer in (await consumers_of(bus, subjects.EVENTS)).values():
        (leaving if consumer.function in withdrawn else needed).extend(consumer.filters)
    remaining = tuple(sorted(left(found.config.subjects, leaving, needed)))
    if set(remaining) != set(found.config.subjects) and remaining:  # a stream has one subject at least: the last one stays
        whole = (await bus.api(f"STREAM.INFO.{subjects.EVENTS}", None, dict[str, Any]))["config"]
        await bus.api(f"STREAM.UPDATE.{subjects.EVENTS}", {**whole, "subjects": remaining}, _Anything)


async def find_stream(bus: Bus, name: str) -> _StreamSeen | None:
    try:
        return await bus.api(f"STREAM.INFO.{name}", None, _StreamSeen)
    except ApiError as error:
        if error.number == NO_STREAM:
            return None
        raise


async def ensure_stream(bus: Bus, wanted: StreamConfig, *, bounded: bool = True) -> None:
    """Make a stream, or make it what it must be; without `bounded` one that is there keeps its `max_bytes`. Raises BusUnavailable in the server's words."""
    seen = await find_stream(bus, wanted.name)
    if seen is not None and not bounded:
        wanted = msgspec.structs.replace(wanted, max_bytes=seen.config.max_bytes)
    try:
        if seen is None:
            await bus.api(f"STREAM.CREATE.{wanted.name}", wanted, _Anything)
        elif _differs(wanted, seen.config):
            # Read, change, write: what an administrator has set besides stays.
            whole = (await bus.api(f"STREAM.INFO.{wanted.name}", None, dict[str, Any]))["config"]
            await bus.api(f"STREAM.UPDATE.{wanted.name}", {**whole, **msgspec.to_builtins(wanted)}, _Anything)
    except ApiError as error:
        hint = "; let the server store more: jetstream { max_file_store }" if error.number == NO_ROOM else ""
        raise BusUnavailable(f"the stream {wanted.name} cannot be made as it must be: {error.description}{hint}") from error


def _differs(wanted: StreamConfig, seen: _ConfigSeen) -> bool:
    own = {**msgspec.to_builtins(wanted), "subjects": set(wanted.subjects)}
    return any(own[name] != value for name, value in {**msgspec.to_builtins(seen), "subjects": set(seen.subjects)}.items())


async def stream_capturing(bus: Bus, subject: str, *, but: str = "") -> str | None:
    """The stream that stores a subject, or a part of what it matches; `but` does not count."""
    names = (await bus.api("STREAM.NAMES", {"subject": subject}, _Names)).streams or ()
    return next((name for name in names if name != but), None)
