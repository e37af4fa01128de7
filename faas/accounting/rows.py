"""From stored messages to rows of the projection: events, outcomes, attempts that are tried again, usage records, dead letters. Pure; knows no database and no bus.

What anybody may have written to a stream and cannot be read is passed over: the projection shows what the runtime wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from msgspec import Struct

from faas import subjects
from faas.bus.cloudevents import decode
from faas.bus.outcomes import split_records
from faas.bus.replay import Consuming, Entry
from faas.bus.schedules import due_of, is_due
from faas.identity import id_of
from faas.model import EventInvalid

DETAIL_CHARACTERS = 500
RECORDS_LIMIT = 1000
"""Of one message, which carries 64: what claims more is none of ours."""
SUBJECTS = 4096
"""Whose functions are remembered; beyond, all are looked up anew."""


class Accepted(Struct, frozen=True, kw_only=True):
    """One event for one function, as its stream has it."""

    invocation: str
    tenant: str
    function: str
    stream: str
    sequence: int
    subject: str
    event_id: str
    accepted_ms: int


class Ended(Struct, frozen=True, kw_only=True):
    """A stored outcome; or with `outcome` "" the word that the invocation is tried again after `attempts` attempts."""

    invocation: str
    tenant: str
    function: str
    version: str
    event_id: str
    outcome: str
    reason: str
    detail: str
    attempts: int
    start: str
    queue_us: int
    load_us: int
    run_us: int
    traceparent: str
    redrive_of: str
    ended_ms: int


class Used(Struct, frozen=True, kw_only=True):
    """A usage record, as far as the projection keeps it; `meters` is JSON."""

    record_id: str
    invocation: str
    attempt: int
    kind: str
    billable: bool
    tenant: str
    function: str
    version: str
    node: str
    environment: str
    outcome: str
    reason: str
    start: str
    started_at: str
    ended_at: str
    queue_us: int
    load_us: int
    run_us: int
    cpu_us: int
    memory_peak_bytes: int
    bytes_in: int
    bytes_out: int
    cost_nanousd: int
    meters: str
    ended_ms: int


class Buried(Struct, frozen=True, kw_only=True):
    """A dead letter."""

    invocation: str
    stream: str
    sequence: int
    reason: str
    at_ms: int


@dataclass(slots=True)
class Rows:
    """What one batch of messages comes to. `failures` are outcomes whose detail stands in their body, by subject."""

    accepted: list[Accepted] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    details: list[tuple[str, str]] = field(default_factory=list)  # (record_id, why that attempt ended)
    used: list[Used] = field(default_factory=list)
    buried: list[Buried] = field(default_factory=list)


class _Record(Struct, frozen=True):
    """A usage record as it is read; other versions may write more."""

    record_id: str
    invocation_id: str
    attempt: int
    kind: str
    tenant: str
    function: str
    record_type: str = "original"
    billable: bool = True
    version: str = ""
    node: str = ""
    environment: str = ""
    outcome: str = ""
    reason: str = ""
    start: str = ""
    started_at: str = ""
    ended_at: str = ""
    queue_us: int = 0
    load_us: int = 0
    run_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cost_nanousd: int = 0
    meters: Mapping[str, int] = {}


class _Problem(Struct, frozen=True):
    detail: str = ""


# ---------------------------------------------------------------- events


class Matching:
    """Which functions an event is for, by the consumers that the bus has: also those of other nodes."""

    def __init__(self, consumers: Iterable[Consuming]) -> None:
        self._consumers = [consumer for consumer in consumers if consumer.filters]
        self._known: dict[str, list[Consuming]] = {}

    def functions(self, entry: Entry) -> list[tuple[str, str]]:
        """(tenant, function) of each, once."""
        found = self._known.get(entry.subject)
        if found is None:
            if len(self._known) >= SUBJECTS:
                self._known.clear()
            found = [one for one in self._consumers if any(subjects.contains(pattern, entry.subject) for pattern in one.filters)]
            self._known[entry.subject] = found
        begun = [one for one in found if entry.sequence >= one.starts and entry.at_ms >= one.starts_ms]
        return list(dict.fromkeys((one.tenant, one.function) for one in begun))


def accepted(entry: Entry, functions: Sequence[tuple[str, str]], body: bytes = b"") -> list[Accepted]:
    """The invocations that an event is; none where it cannot be decoded. `body` is needed of a structured CloudEvent alone."""
    subject, accepted_ms = entry.subject, entry.at_ms
    due = due_of(entry.headers) if is_due(entry.subject) else None
    if due is not None:
        event_id, subject, accepted_ms = due.event_id, due.subject or subject, round(due.first_seen * 1000)
    else:
        decoded = decode(entry.headers, body, source=entry.stream, event_id=f"{entry.sequence}.{entry.at_ns}")
        if is_due(entry.subject) or isinstance(decoded, EventInvalid):
            return []
        event, control = decoded
        event_id = event.id
    return [
        Accepted(
            invocation=due.invocation if due is not None else id_of(tenant, function, event, control=control),
            tenant=tenant,
            function=function,
            stream=entry.stream,
            sequence=entry.sequence,
            subject=subject,
            event_id=event_id,
            accepted_ms=accepted_ms,
        )
        for tenant, function in functions
    ]


def is_structured(entry: Entry) -> bool:
    """Whether an event's identity stands in its body."""
    return any(
        name.lower() == "content-type" and value.lower().startswith("application/cloudevents") for name, value in entry.headers.items()
    )


# ---------------------------------------------------------------- ends


def ended(entry: Entry, body: bytes = b"") -> Ended | None:
    """An outcome, or the record of an attempt that is tried again. `body` is needed of a failure alone."""
    tokens, head = entry.subject.split("."), entry.headers
    if len(tokens) != 5 or tokens[1] not in ("outcome", "attempt"):
        return None
    if tokens[1] == "attempt" and not _number(head, "Faas-Attempt"):
        return None  # an idempotency key was claimed; what comes of that says its event
    detail = ""
    if tokens[1] == "outcome" and body:
        try:
            detail = msgspec.json.decode(body, type=_Problem).detail
        except (msgspec.DecodeError, RecursionError):
            detail = ""
    return Ended(
        invocation=tokens[4],
        tenant=tokens[2],
        function=tokens[3],
        version=head.get("Faas-Version", ""),
        event_id=head.get("Faas-Event-Id", ""),
        outcome=head.get("Faas-Outcome", "") if tokens[1] == "outcome" else "",
        reason=head.get("Faas-Reason", ""),
        detail=detail[:DETAIL_CHARACTERS] or head.get("Faas-Detail", "")[:DETAIL_CHARACTERS],
        attempts=_number(head, "Faas-Attempt"),
        start=head.get("Faas-Start", ""),
        queue_us=_number(head, "Faas-Queue-Us"),
        load_us=_number(head, "Faas-Load-Us"),
        run_us=_number(head, "Faas-Run-Us"),
        traceparent=head.get("traceparent", ""),
        redrive_of=head.get("Faas-Redrive-Of", ""),
        ended_ms=entry.at_ms,
    )


def failed(entry: Entry) -> bool:
    """Whether the body of an outcome says why it is none that the function gave."""
    return entry.subject.startswith("faas.outcome.") and bool(entry.headers.get("Faas-Reason"))


def _number(head: Mapping[str, str], name: str) -> int:
    text = head.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0


def used(entry: Entry) -> list[Used]:
    """The usage records of a message."""
    try:
        packed = split_records(entry.data)[:RECORDS_LIMIT]
        records = [msgspec.json.decode(record, type=_Record) for record in packed]
    except (msgspec.DecodeError, RecursionError):
        return []
    return [_used(record, entry) for record in records if record.record_type == "original"]


def _used(record: _Record, entry: Entry) -> Used:
    return Used(
        record_id=record.record_id,
        invocation=record.invocation_id,
        attempt=record.attempt,
        kind=record.kind,
        billable=record.billable,
        tenant=record.tenant,
        function=record.function,
        version=record.version,
        node=record.node,
        environment=record.environment,
        outcome=record.outcome,
        reason=record.reason,
        start=record.start,
        started_at=record.started_at,
        ended_at=record.ended_at,
        queue_us=record.queue_us,
        load_us=record.load_us,
        run_us=record.run_us,
        cpu_us=record.cpu_us,
        memory_peak_bytes=record.memory_peak_bytes,
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
        cost_nanousd=record.cost_nanousd,
        meters=msgspec.json.encode(record.meters).decode() if record.meters else "",
        ended_ms=_moment_ms(record.ended_at) or entry.at_ms,
    )


def _moment_ms(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return 0


def buried(entry: Entry) -> Buried | None:
    """A dead letter; None where it names no invocation."""
    invocation = entry.headers.get("Faas-Invocation", "")
    reason = entry.headers.get("Faas-Reason", "")
    return (
        Buried(invocation=invocation, stream=entry.stream, sequence=entry.sequence, reason=reason, at_ms=entry.at_ms)
        if invocation
        else None
    )
