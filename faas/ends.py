"""What an attempt comes to, in the words of the bus and of the log. Publishes nothing."""

from __future__ import annotations

import logging

import structlog

from faas.identity import payload_digest
from faas.invocation import Invocation
from faas.model import Outcome
from faas.pool.attempt import Attempt
from faas.pool.hearing import trace_of

log = structlog.get_logger()


def outcome_of(invocation: Invocation, attempt: Attempt) -> Outcome:
    spec = invocation.function.spec
    # Where no trace came, only an event that is caused needs one of its own: the others would pay for it.
    traced = "traceparent" in invocation.event.extensions or spec.output.publish
    traceparent, tracestate = trace_of(invocation) if traced else ("", "")
    return Outcome(
        invocation_id=invocation.id,
        tenant=spec.tenant,
        function=spec.name,
        version=invocation.function.version,
        event_id=invocation.event.id,
        attempt=invocation.attempts + attempt.measured,
        ended=attempt.ended,
        phases=attempt.phases,
        depth=invocation.control.depth,
        traceparent=traceparent,
        tracestate=tracestate,
        redrive_of=invocation.due.redrive_of if invocation.due is not None else "",
        payload_digest=payload_digest(invocation.event) if invocation.control.key else "",
    )


def records_of(attempt: Attempt) -> list[bytes]:
    return [record for record in (attempt.record, attempt.load_record) if record is not None]


def names_of(invocation: Invocation) -> dict[str, str]:
    return {"invocation_id": invocation.id, "tenant": invocation.function.spec.tenant, "function": invocation.function.spec.name}


def log_end(invocation: Invocation, outcome: Outcome) -> None:
    """A success is a line only where someone looks closely; any other end always is."""
    ended, phases = outcome.ended, outcome.phases
    if not ended.reason and not log.is_enabled_for(logging.DEBUG):
        return  # thousands a second: the fields alone would cost what they tell
    write = log.info if ended.reason else log.debug
    write(
        "invocation.finished",
        **names_of(invocation),
        outcome=ended.outcome,
        reason=ended.reason,
        detail=ended.detail,
        attempt=outcome.attempt,
        start=phases.start,
        queue_us=phases.queue_us,
        load_us=phases.load_us,
        run_us=phases.run_us,
    )
