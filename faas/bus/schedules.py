"""What waits outside a delivery: a back-off as a message schedule, which fires on `faas.due...` when it is due. Redriven events come that way too.

An event on `faas.due...` carries in `Faas-*` headers what its place in a stream no longer tells: its invocation, its age, and
what it was. Only there they are honoured. Source: ADR-51 for schedules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from urllib.parse import quote, unquote

import structlog

from faas import subjects
from faas.bus.connection import Bus, encode_head
from faas.bus.outcomes import HEAD_LIMIT_BYTES
from faas.bus.replay import count
from faas.errors import BusUnavailable, MessageTooLarge
from faas.model import Due

log = structlog.get_logger()

SCHEDULE_BEYOND_S = 5.0
"""A longer back-off is a schedule: a delayed `nak` keeps its place among what a consumer may have unacknowledged."""
VIEW = "Faas-Registry-View"
"""Of a schedule that is armed: how far whoever armed it had read the registry."""
DUE_TTL = "1h"
"""Of what has fired: by then FAAS_EVENTS has taken it."""
SCHEDULES_LIMIT = 100_000
"""So many may wait; beyond, deliveries are held instead, since each waiting one costs the server memory."""
LOOK_EVERY = 256
_INVOCATION = re.compile(r"[a-z2-7]{26}")
_OWN = (
    "Faas-Invocation", "Faas-Attempt", "Faas-First-Seen", "Faas-Event-Id", "Faas-Event-Source", "Faas-Subject", "Faas-Msg-Id", "Faas-Redrive-Of",
    VIEW,
)  # fmt: skip
_OWN_LOWER = frozenset(name.lower() for name in _OWN)


def due_head(due: Due) -> list[tuple[str, str]]:
    """What marks a due event, as headers."""
    lines = [
        ("Faas-Invocation", due.invocation),
        ("Faas-Attempt", str(due.attempt)),
        ("Faas-First-Seen", datetime.fromtimestamp(due.first_seen, UTC).isoformat()),
        ("Faas-Event-Id", quote(due.event_id, safe="")),
        ("Faas-Event-Source", quote(due.source, safe="/:")),
        ("Faas-Subject", due.subject),
        ("Faas-Msg-Id", due.message_id),
        ("Faas-Redrive-Of", due.redrive_of),
    ]
    return [(name, value) for name, value in lines if value]


def is_due(subject: str) -> bool:
    """Whether the control headers of a message on this subject are honoured."""
    return subject.startswith("faas.due.")


def due_of(headers: Mapping[str, str] | None) -> Due | None:
    """What the headers say; None where they are not whole: nobody but the runtime and its operators writes there."""
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    try:
        first_seen = datetime.fromisoformat(lower["faas-first-seen"])
        due = Due(
            invocation=lower["faas-invocation"],
            first_seen=(first_seen if first_seen.tzinfo else first_seen.replace(tzinfo=UTC)).timestamp(),
            event_id=unquote(lower["faas-event-id"], errors="strict"),
            source=unquote(lower.get("faas-event-source", ""), errors="strict"),
            subject=lower.get("faas-subject", ""),
            message_id=lower.get("faas-msg-id", ""),
            redrive_of=lower.get("faas-redrive-of", ""),
            attempt=int(lower.get("faas-attempt", "0")),
        )
    except (KeyError, ValueError):
        return None
    return due if _INVOCATION.fullmatch(due.invocation) else None


def event_head(headers: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """The event's own headers: without NATS' own, which would act again, and without what marks a due event."""
    return [
        (name, value) for name, value in (headers or {}).items() if not name.lower().startswith("nats-") and name.lower() not in _OWN_LOWER
    ]


def message_id_of(headers: Mapping[str, str] | None) -> str:
    """The `Nats-Msg-Id` of a message, "" where it has none."""
    return next((value for name, value in (headers or {}).items() if name.lower() == "nats-msg-id"), "")


class Schedules:
    """Back-offs of one node."""

    def __init__(self, bus: Bus, *, limit: int = SCHEDULES_LIMIT) -> None:
        self._bus, self._limit = bus, limit
        self._until_look = 0
        self._full = False

    async def retry(self, tenant: str, function: str, due: Due, *, at: float, headers: Iterable[tuple[str, str]], body: bytes) -> bool:
        """Have an event come again at a moment (seconds since the epoch). False: it cannot wait outside its delivery.

        Stored once for each attempt: `Nats-Msg-Id` is invocation and attempt.
        """
        when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        schedule = [
            ("Nats-Schedule", f"@at {when}"),
            ("Nats-Schedule-Target", subjects.due(tenant, function)),
            ("Nats-Schedule-TTL", DUE_TTL),
            ("Nats-Msg-Id", f"{due.invocation}.{due.attempt}"),
        ]
        head = encode_head([*headers, *due_head(due), *schedule])
        if len(head) > HEAD_LIMIT_BYTES:
            return False
        try:
            if await self._is_full():
                return False
            await self._bus.store(subjects.retry(tenant, function, due.invocation), body, head=head)
        except (BusUnavailable, MessageTooLarge) as error:
            log.warning("retry.not_scheduled", invocation_id=due.invocation, error=str(error))
            return False
        return True

    async def _is_full(self) -> bool:
        """Looked at now and then: a schedule more or less does no harm."""
        self._until_look -= 1
        if self._until_look < 0 or self._full:
            self._until_look = LOOK_EVERY
            self._full = await count(self._bus, subjects.SCHEDULES, "faas.retry.>") >= self._limit  # what has fired stays for DUE_TTL
        return self._full
