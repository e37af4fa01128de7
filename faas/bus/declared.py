"""Which streams and buckets the runtime has, and their bounds: one table. Pure; whoever declares them is `streams`."""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from faas import subjects
from faas.config import BusConfig

DAY_S = 86_400
EVENTS_AGE_S = 8 * DAY_S
DEDUP_S = 120
OUTCOMES_LIMIT = 500_000
"""Each retained subject costs the server some 700 bytes of memory."""
USAGE_AGE_S = 400 * DAY_S
LOGS_AGE_S = DAY_S
CANCELLED_AGE_S = 7 * DAY_S
DEAD_AGE_S = 14 * DAY_S
PAYLOADS_BEFORE_S = 3600
"""A body is in the bucket before the message that names it, and has to be there until that one is gone."""
GIB = 2**30
BUNDLES_BYTES, BUNDLES_SHARE = GIB, 0.05
"""Of the object store that holds what functions are made of; the share is of what an embedded server may store."""


class Source(Struct, frozen=True, kw_only=True):
    """Another stream that a stream takes messages from."""

    name: str
    filter_subject: str = ""


class StreamConfig(Struct, frozen=True, kw_only=True):
    """What is declared of a stream; times are in nanoseconds, as JetStream takes them."""

    name: str
    subjects: tuple[str, ...]
    retention: str = "limits"
    storage: str = "file"
    discard: str = "old"
    max_age: int
    max_bytes: int = -1
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    duplicate_window: int = DEDUP_S * 10**9
    num_replicas: int = 1
    allow_direct: bool = True
    sources: tuple[Source, ...] = ()
    allow_msg_schedules: bool = False
    allow_msg_ttl: bool = False
    allow_rollup_hdrs: bool = False
    deny_delete: bool = False


def declared(events: list[str], config: BusConfig, store_bytes: int | None) -> list[StreamConfig]:
    bounded = partial(_bounded, store_bytes)
    replicas = config.replicas
    return [
        _schedules(config),
        StreamConfig(
            name=subjects.EVENTS,
            subjects=tuple(sorted(events)),
            sources=(Source(name=subjects.SCHEDULES, filter_subject="faas.due.>"),),
            discard="new",  # a full stream refuses the publisher instead of dropping what it acknowledged
            max_age=EVENTS_AGE_S * 10**9,
            max_bytes=bounded(config.max_bytes, 0.3),
            num_replicas=replicas,
        ),
        StreamConfig(
            name=subjects.OUTCOMES,
            subjects=("faas.attempt.>", "faas.outcome.>"),
            max_age=round(config.outcome_retention_s * 1e9),
            max_bytes=bounded(4 * GIB, 0.2),
            max_msgs=OUTCOMES_LIMIT,
            max_msgs_per_subject=1,
            duplicate_window=min(DEDUP_S * 10**9, round(config.outcome_retention_s * 1e9)),
            num_replicas=replicas,
        ),
        StreamConfig(
            name=subjects.USAGE,
            subjects=("faas.usage.>",),
            max_age=USAGE_AGE_S * 10**9,
            max_bytes=bounded(2 * GIB, 0.1),
            num_replicas=replicas,
        ),
        StreamConfig(
            name=subjects.DEAD, subjects=("faas.dead.>",), max_age=DEAD_AGE_S * 10**9, max_bytes=bounded(GIB, 0.08), num_replicas=replicas
        ),
        StreamConfig(
            name=f"KV_{subjects.CANCELLED}",
            subjects=(f"$KV.{subjects.CANCELLED}.>",),
            discard="new",
            max_age=CANCELLED_AGE_S * 10**9,
            max_bytes=bounded(GIB // 16, 0.01),
            max_msgs_per_subject=1,
            num_replicas=replicas,
            allow_msg_ttl=True,
        ),
        StreamConfig(
            name=subjects.LOGS,
            subjects=("faas.log.>",),
            max_age=LOGS_AGE_S * 10**9,
            max_bytes=bounded(GIB // 4, 0.05),
            num_replicas=replicas,
        ),
        _payloads(config, store_bytes),
    ]


def _schedules(config: BusConfig) -> StreamConfig:
    """Before FAAS_EVENTS, which takes from it what is due; without bounds, since what waits there was accepted."""
    return StreamConfig(
        name=subjects.SCHEDULES,
        subjects=("faas.due.>", "faas.retry.>", f"{subjects.SCHEDULE_PREFIX}>"),
        max_age=0,
        num_replicas=config.replicas,
        allow_msg_schedules=True,
        allow_msg_ttl=True,
        allow_rollup_hdrs=True,  # the server sets it beside schedules
    )


def _payloads(config: BusConfig, store_bytes: int | None) -> StreamConfig:
    """A bucket of the object store (ADR-20). Each object says how long it is kept; this is how long one may be at most."""
    return StreamConfig(
        name=f"OBJ_{subjects.PAYLOADS}",
        subjects=(f"$O.{subjects.PAYLOADS}.C.>", f"$O.{subjects.PAYLOADS}.M.>"),
        discard="new",  # full, it refuses a publisher instead of taking parts of what waits
        max_age=round(max(EVENTS_AGE_S, config.outcome_retention_s) + PAYLOADS_BEFORE_S) * 10**9,
        max_bytes=_bounded(store_bytes, 4 * GIB, 0.2),
        num_replicas=config.replicas,
        allow_msg_ttl=True,
        allow_rollup_hdrs=True,
    )


def _bounded(store_bytes: int | None, wanted: int, share: float) -> int:
    return int(wanted) if store_bytes is None else min(int(wanted), int(store_bytes * share))
