"""Ends on the bus: the stored outcome and its guard, records of attempts that are tried again, replies, results as events, dead letters.

Owns how an outcome looks in headers and body. Knows no function code, no queue and no worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

import msgspec
from msgspec import Struct

from faas import subjects
from faas.bus.cloudevents import binary_head
from faas.bus.connection import Bus, encode_head
from faas.bus.reading import holds_another
from faas.errors import AlreadyStored
from faas.model import Ended, Outcome

PROBLEM = "application/problem+json"
HEAD_RESERVE_BYTES = 8 * 1024
"""What the head of an outcome takes at most, without its usage records."""
RECORD_RESERVE_BYTES = 2560
"""What one usage record takes in the head: some 900 bytes, and its tags."""
HEAD_LIMIT_BYTES = 65_000
"""JetStream stores no message whose headers have more than 65,535 bytes (error 10097)."""
RECORDS_BYTES = 44 * 1024
"""Of the head, for usage records: the latest that fit; earlier ones are in FAAS_USAGE since their attempts ended."""
DETAIL_CHARACTERS = 500
"""Of why an attempt ended that is tried again: nothing else on the bus tells it."""
PAYLOAD_DIGEST = "Faas-Payload-Digest"
"""Of what an idempotency key came with: only the same payload may come with it again."""
GUARD_BYTES = 256
"""Names of the headers that only a stored outcome has, and their own line ends."""

STATUS_OF_REASON: Mapping[str, int] = {
    **dict.fromkeys(("event_invalid", "payload_invalid"), 400),
    "policy": 403,
    "unknown_function": 404,
    **dict.fromkeys(("queue_timeout", "deadline"), 408),
    "payload_too_large": 413,
    **dict.fromkeys(("rejected_by_handler", "depth"), 422),
    "budget_exhausted": 429,
    **dict.fromkeys(("error", "load_error", "result_invalid", "result_too_large", "environment_failed"), 500),
    **dict.fromkeys(("worker_lost", "oom", "gpu_oom", "gpu_memory", "gpu_fault", "protocol_error", "fate_unknown"), 502),
    **dict.fromkeys(("timeout", "load_timeout", "gpu_seconds", "cost", "cancelled"), 504),
}
"""HTTP's number for a reason: `status` of a problem document and `Nats-Service-Error-Code`."""


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457; `code` is the reason."""

    title: str
    status: int
    code: str
    detail: str = ""
    traceback: str = ""


class _Detail(Struct, frozen=True):
    """Of a problem document, what a reply says in a header too."""

    detail: str = ""


class StoredOutcome(Struct, frozen=True, kw_only=True):
    """An outcome as FAAS_OUTCOMES holds it: `head` without its usage records, which are in `records` byte for byte."""

    outcome: str
    reason: str
    attempt: str
    head: bytes
    body: bytes
    records: tuple[bytes, ...]
    payload_digest: str = ""  # of what came with its idempotency key; "" where it had none


class StoredAttempts(Struct, frozen=True, kw_only=True):
    """The usage records of the attempts so far, and the sequence that guards the next store (0: none is stored). `event_id` as the header has it."""

    sequence: int = 0
    records: tuple[bytes, ...] = ()
    event_id: str = ""
    payload_digest: str = ""
    claimed_at: str = ""  # when its idempotency key was claimed, where nothing has come of that yet


NO_ATTEMPTS = StoredAttempts()


def split_records(array: bytes) -> tuple[bytes, ...]:
    """A JSON array -> its items, byte for byte."""
    return tuple(bytes(item) for item in msgspec.json.decode(array, type=list[msgspec.Raw]))


def latest_records(records: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """As many of the last records as an outcome's head has room for, the last one always."""
    while len(records) > 1 and sum(map(len, records)) > RECORDS_BYTES:
        records = records[1:]
    return records


def join_records(records: tuple[bytes, ...] | list[bytes]) -> bytes:
    """Encoded usage records -> a JSON array."""
    return b"[" + b",".join(records) + b"]"


def body_of(ended: Ended) -> tuple[bytes, str]:
    """(body, content type): the handler's result, or a problem document."""
    if not ended.reason:
        return ended.body, ended.content_type
    problem = Problem(
        title=ended.outcome,
        status=STATUS_OF_REASON[ended.reason],
        code=ended.reason,
        detail=ended.detail,
        traceback=ended.traceback,
    )
    return msgspec.json.encode(problem), PROBLEM


@lru_cache(maxsize=4096)
def _fixed_head(key: tuple[str, str, str], outcome: str, content_type: str) -> bytes:
    """The lines that repeat from one outcome of a function to the next: encoding them each time cost a fifth of a bare reply."""
    tenant, function, version = key
    lines = [("Faas-Tenant", tenant), ("Faas-Function", function), ("Faas-Version", version), ("Faas-Outcome", outcome)]
    event = {"specversion": "1.0", "source": f"/faas/{tenant}/{function}", "type": f"faas.{outcome}"}
    if content_type:
        lines.append(("Content-Type", content_type))
        event["datacontenttype"] = content_type
    return encode_head(lines) + binary_head(event)


def event_id_header(event_id: str) -> str:
    """An event's id as a header's value: percent-encoded where it is not printable ASCII."""
    return event_id if event_id.isascii() and event_id.isprintable() else quote(event_id, safe="")


def head_of(outcome: Outcome, content_type: str) -> bytes:
    """The head of an outcome but for its usage records."""
    ended, phases = outcome.ended, outcome.phases
    head = _fixed_head((outcome.tenant, outcome.function, outcome.version), ended.outcome, content_type)
    text = (
        f"Faas-Invocation: {outcome.invocation_id}\r\nce-id: {outcome.invocation_id}\r\nFaas-Attempt: {outcome.attempt}\r\n"
        f"Faas-Queue-Us: {phases.queue_us}\r\nFaas-Load-Us: {phases.load_us}\r\nFaas-Run-Us: {phases.run_us}\r\n"
        f"Faas-Event-Id: {event_id_header(outcome.event_id)}\r\n"
    )
    if phases.start:
        text += f"Faas-Start: {phases.start}\r\n"
    if ended.reason:
        text += f"Faas-Reason: {ended.reason}\r\n"
    if outcome.redrive_of:
        text += f"Faas-Redrive-Of: {outcome.redrive_of}\r\n"
    if outcome.payload_digest:
        text += f"{PAYLOAD_DIGEST}: {outcome.payload_digest}\r\n"
    if ended.object:
        text += f"Faas-Object: {ended.object}\r\n"
    if outcome.traceparent:
        text += f"traceparent: {outcome.traceparent}\r\n"
        if outcome.tracestate:
            text += f"tracestate: {outcome.tracestate}\r\n"
    return head + text.encode()


class Outcomes:
    """Everything that an end of an invocation writes onto the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def inline_limit_bytes(self, attempts: int, *, content_type: str, event_id: str) -> int:
        """The largest result that an outcome with so many usage records carries itself; one above it goes into the object store."""
        named_bytes = 4 * len(content_type) + len(event_id_header(event_id))  # the type twice, once percent-encoded
        return self._bus.body_limit_bytes - HEAD_RESERVE_BYTES - attempts * RECORD_RESERVE_BYTES - named_bytes

    def fits(self, outcome: Outcome, records: tuple[bytes, ...]) -> bool:
        """Whether the bus carries it, with these usage records."""
        ended = outcome.ended
        if not ended.reason:  # nearly all: encoding the head to measure it would be done a second time to send it
            named_bytes = 4 * len(ended.content_type) + 12 * len(outcome.event_id) + len(outcome.tracestate)
            if HEAD_RESERVE_BYTES + named_bytes + sum(map(len, records)) + len(ended.body) <= min(
                HEAD_LIMIT_BYTES, self._bus.body_limit_bytes
            ):
                return True
        body, content_type = body_of(ended)
        head_bytes = len(head_of(outcome, content_type)) + sum(map(len, records)) + len(records) + GUARD_BYTES
        return head_bytes <= HEAD_LIMIT_BYTES and head_bytes + len(body) <= self._bus.body_limit_bytes

    async def store(self, outcome: Outcome, records: tuple[bytes, ...]) -> StoredOutcome | None:
        """Store the terminal outcome under its guard. None: there was one already. Raises BusUnavailable."""
        body, content_type = body_of(outcome.ended)
        head = head_of(outcome, content_type)
        guarded = head + b"Faas-Usage: " + join_records(records) + b"\r\nNats-Expected-Last-Subject-Sequence: 0\r\n"
        subject = subjects.outcome(outcome.tenant, outcome.function, outcome.invocation_id)
        try:
            await self._bus.store(subject, body, head=guarded)
        except AlreadyStored:
            return None
        return StoredOutcome(
            outcome=outcome.ended.outcome,
            reason=outcome.ended.reason,
            attempt=str(outcome.attempt),
            head=head,
            body=body,
            records=records,
        )

    async def find(self, tenant: str, function: str, invocation_id: str, *, leader: bool) -> StoredOutcome | None:
        """The stored outcome of an invocation, if there is one.

        `leader` reads through the stream's leader; else a direct get, which a replica that lags may answer.
        """
        subject = subjects.outcome(tenant, function, invocation_id)
        found = await (self._bus.last_stored(subjects.OUTCOMES, subject) if leader else self._bus.last_direct(subjects.OUTCOMES, subject))
        if found is None:
            return None
        headers = found.headers or {}
        kept = [(name, value) for name, value in headers.items() if not name.startswith("Nats-") and name != "Faas-Usage"]
        return StoredOutcome(
            outcome=headers.get("Faas-Outcome", ""),
            reason=headers.get("Faas-Reason", ""),
            attempt=headers.get("Faas-Attempt", "0"),
            head=encode_head(kept),
            body=found.data,
            records=split_records(headers.get("Faas-Usage", "[]").encode()),
            payload_digest=headers.get(PAYLOAD_DIGEST, ""),
        )

    async def attempts(self, tenant: str, function: str, invocation_id: str, *, leader: bool) -> StoredAttempts:
        """The records of attempts that ended without a terminal outcome; `leader` as in `find`."""
        subject = subjects.attempt(tenant, function, invocation_id)
        found = await (self._bus.last_stored(subjects.OUTCOMES, subject) if leader else self._bus.last_direct(subjects.OUTCOMES, subject))
        if found is None:
            return StoredAttempts()
        headers = found.headers or {}
        return StoredAttempts(
            sequence=found.sequence,
            records=split_records(found.data),
            event_id=headers.get("Faas-Event-Id", ""),
            payload_digest=headers.get(PAYLOAD_DIGEST, ""),
            claimed_at=headers.get("Faas-First-Seen", ""),
        )

    async def store_attempts(self, outcome: Outcome, records: tuple[bytes, ...], *, after: int) -> bool:
        """Store the records so far of an invocation that is tried again, guarded by the sequence of the last such store. False: another was faster."""
        subject = subjects.attempt(outcome.tenant, outcome.function, outcome.invocation_id)
        detail = outcome.ended.detail[:DETAIL_CHARACTERS].encode("ascii", "backslashreplace").decode()
        guard = encode_head([("Faas-Detail", detail), ("Nats-Expected-Last-Subject-Sequence", str(after))])
        head = head_of(outcome, "application/json") + guard
        try:
            await self._bus.store(subject, join_records(records), head=head)
        except AlreadyStored:
            return False
        return True

    async def reply(self, subject: str, outcome: Outcome) -> None:
        """Answer a synchronous caller; a failure carries the service error of ADR-32 too."""
        body, content_type = body_of(outcome.ended)
        head = head_of(outcome, content_type)
        if outcome.ended.reason:
            head += _service_error(outcome.ended.reason, outcome.ended.detail)
        await self._bus.answer(subject, body, head=head)

    async def repeat(self, subject: str, outcome: StoredOutcome) -> None:
        """Answer a synchronous caller with an outcome that is stored, as `reply` would have."""
        head = outcome.head
        if outcome.reason:
            head += _service_error(outcome.reason, _detail_of(outcome.body))
        await self._bus.answer(subject, outcome.body, head=head)

    async def forward(self, subject: str, outcome: StoredOutcome) -> None:
        """Send a stored outcome to a `Faas-Reply-To` as well."""
        await self._bus.answer(subject, outcome.body, head=outcome.head)

    async def emit(self, subject: str, outcome: Outcome, *, stored: bool) -> None:
        """Publish a succeeded result as an event on its function's `[output]`; awaited where a stream captures the subject."""
        body, content_type = body_of(outcome.ended)
        head = head_of(outcome, content_type) + f"Faas-Depth: {outcome.depth + 1}\r\n".encode()
        if outcome.ended.object:
            head += binary_head({"dataref": outcome.ended.object})  # so that the next function gets it as its payload
        if not stored:
            await self._bus.publish(subject, body, head=head)
            return
        had = await self._bus.store(subject, body, head=head + f"Nats-Msg-Id: {outcome.invocation_id}\r\n".encode())
        if had.duplicate and had.stream == subjects.EVENTS and await holds_another(self._bus, had, subject):
            await self._bus.store(subject, body, head=head)


def _service_error(reason: str, detail: str) -> bytes:
    status = STATUS_OF_REASON.get(reason, 500)
    return encode_head([("Nats-Service-Error-Code", str(status)), ("Nats-Service-Error", f"{reason}: {_one_line(detail)}")])


def _detail_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Detail).detail
    except (msgspec.DecodeError, RecursionError):
        return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
