"""From what came over the bus to an invocation: its event, its identity, and its clocks on this node. Decides nothing about whether it may run.

The same event for the same function is the same invocation on any node, at any time; what nothing stores gets a random id.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import structlog

from faas import subjects
from faas.bus.cloudevents import decode
from faas.bus.connection import Message, StoredMessage
from faas.bus.pull import Delivery
from faas.bus.schedules import due_of, event_head, is_due
from faas.identity import id_of, random_invocation_id
from faas.invocation import Invocation
from faas.model import Control, Due, Event, EventInvalid, FunctionVersion
from faas.security.tenants import Tenants

log = structlog.get_logger()

SYNCHRONOUS_WAIT_S = 60.0
"""A synchronous call without a deadline is `expired` after so long without a start."""

_MISTAKES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def of_delivery(delivery: Delivery, function: FunctionVersion, *, now: float, tenants: Tenants) -> Invocation | EventInvalid:
    """The invocation that a stored event is for this function. `now` is seconds since the epoch, by the clock that stamped the event."""
    due, headers = None, delivery.headers
    event_id, source = f"{delivery.sequence}.{delivery.stored_at_ns}", delivery.stream
    if is_due(delivery.subject):
        due = due_of(delivery.headers)
        if due is None:
            return EventInvalid("it is on faas.due, and its headers do not say which invocation it is")
        event_id, source, headers = due.event_id, due.source, dict(event_head(delivery.headers))
    decoded = decoded_event(delivery, headers, source=source, event_id=event_id)
    if isinstance(decoded, EventInvalid):
        return decoded
    event, control = decoded
    spec = function.spec
    if due is not None:
        return _bounded(_due_invocation(due, function, event, control=control, now=now), tenants)
    invocation = _invocation(
        id_of(spec.tenant, spec.name, event, control=control),
        function,
        event,
        control=control,
        now=now,
        age_s=max(0.0, now - delivery.stored_at),
        patience_s=spec.limits.queue_timeout_s,
        first=delivery.num_delivered == 1,
    )
    invocation.stored = True
    return _bounded(invocation, tenants)


def _due_invocation(due: Due, function: FunctionVersion, event: Event, *, control: Control, now: float) -> Invocation:
    """One that waited outside its delivery: its id and its age are those that it had. A redriven one may succeed however old it is."""
    if due.redrive_of:
        control = msgspec.structs.replace(control, deadline_at=None)
    invocation = _invocation(
        due.invocation,
        function,
        event,
        control=control,
        now=now,
        age_s=max(0.0, now - due.first_seen),
        patience_s=function.spec.limits.queue_timeout_s,
        first=due.attempt == 0,
    )
    invocation.due, invocation.stored = due, True
    return invocation


def of_message(message: Message, function: FunctionVersion, *, answered: bool, now: float, tenants: Tenants) -> Invocation | EventInvalid:
    """The invocation of an event that nothing stores; `answered` says that somebody waits for its end."""
    random_id = random_invocation_id()
    decoded = decoded_event(message, message.headers, source="", event_id=random_id)
    if isinstance(decoded, EventInvalid):
        return decoded
    event, control = decoded
    patience_s: float = function.spec.limits.queue_timeout_s
    if answered and control.deadline_at is None:
        patience_s = min(patience_s, SYNCHRONOUS_WAIT_S)
    return _bounded(_invocation(random_id, function, event, control=control, now=now, age_s=0.0, patience_s=patience_s), tenants)


def _bounded(invocation: Invocation, tenants: Tenants) -> Invocation | EventInvalid:
    """The invocation, unless what it says would go where its function's tenant may not publish, or be heard as another's: a stranger may have sent it."""
    spec, control = invocation.function.spec, invocation.control
    if not control.chunk_to and not control.reply_to:
        return invocation
    if control.chunk_to.startswith(subjects.CHUNKS):
        if control.chunk_to != subjects.chunk(spec.tenant, spec.name, invocation.id):
            return EventInvalid(f"Faas-Chunk-To {control.chunk_to[:80]!r} belongs to another invocation than {invocation.id}")
    elif problem := _problem_with_named(control.chunk_to, spec.tenant, tenants):
        return EventInvalid(f"Faas-Chunk-To {control.chunk_to[:80]!r}: {problem}")
    if problem := _problem_with_named(control.reply_to, spec.tenant, tenants):
        return EventInvalid(f"Faas-Reply-To {control.reply_to[:80]!r}: {problem}")
    return invocation


def _problem_with_named(subject: str, tenant: str, tenants: Tenants) -> str:
    """Why nothing may be said here, where an event names it."""
    if subjects.waits_for_the_bus(subject):
        return "a node or a server waits there for an answer to something else"
    return tenants.not_answered(tenant, subject) if subject else ""


def without_event(function: FunctionVersion) -> Invocation:
    """What stands for an event that could not be decoded, so that its sender can be told."""
    random_id = random_invocation_id()
    event = Event(id=random_id, source="", type="", subject="", time="", datacontenttype="", dataschema="", extensions={}, data=b"")
    return _invocation(random_id, function, event, control=Control(), now=0.0, age_s=0.0, patience_s=SYNCHRONOUS_WAIT_S)


def decoded_event(
    message: Delivery | Message | StoredMessage, headers: Mapping[str, str] | None, *, source: str, event_id: str
) -> tuple[Event, Control] | EventInvalid:
    """The event in a message, whoever wrote it."""
    try:
        return decode(headers, message.data, source=source, event_id=event_id)
    except _MISTAKES as error:  # ours, in reading what anyone may write: redelivered, it would be made again for ever
        log.exception("event.not_decoded", subject=message.subject, event_id=event_id)
        return EventInvalid(f"this node fails to decode it: {type(error).__name__}")


def _invocation(
    id: str,
    function: FunctionVersion,
    event: Event,
    *,
    control: Control,
    now: float,
    age_s: float,
    patience_s: float,
    first: bool = True,
) -> Invocation:
    """Put the wall-clock moments of an event onto this node's monotonic clock, once: a clock that is set later changes nothing."""
    now_monotonic = time.monotonic()
    start_by, deadline = now_monotonic - age_s + patience_s, float("inf")
    if control.deadline_at is not None:
        deadline = now_monotonic + control.deadline_at - now
    return Invocation(
        id=id,
        function=function,
        event=event,
        control=control,
        received_monotonic=now_monotonic,
        waited_us=round(age_s * 1e6) if first else 0,
        start_by_monotonic=min(start_by, deadline),
        late_reason="deadline" if deadline < start_by else "queue_timeout",
        deadline_monotonic=deadline,
    )
