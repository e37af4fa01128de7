"""Schedules of functions on the bus: of each the one time at which it is due next, as a message of FAAS_SCHEDULES that the server fires.

One message on `faas.schedule.<tenant>.<function>.<n>` for each schedule, swapped by compare-and-swap alone. What it fires is an event on
`faas.due...` that is whole before it waits: its id is the time, its source the schedule, so it is the same invocation whoever armed it. Knows no
registry, and not what ought to be armed. Source: ADR-51.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import unquote

from msgspec import Struct

from faas import subjects
from faas.bus.cloudevents import binary_head
from faas.bus.connection import ApiError, Bus, encode_head
from faas.bus.messages import StoredMessage
from faas.bus.reading import messages_of
from faas.bus.schedules import VIEW, due_head
from faas.identity import invocation_id
from faas.model import Due
from faas.triggers import Trigger

TYPE = "faas.schedule"
TTL_S = (60, 86_400)
"""What has fired waits for FAAS_EVENTS until the next one is due, but so long at least and at most: a full stream that is emptied gets one and no burst."""


class Slot(NamedTuple):
    """One schedule: the `number`-th that a function declares, from 0."""

    tenant: str
    function: str
    number: int


class View(NamedTuple):
    """How far somebody has read the registry: which one, by when it was made, and up to which revision. The later one is the larger."""

    registry: str
    revision: int


class Armed(Struct, frozen=True, kw_only=True):
    """A schedule as it waits. `at` is seconds since the epoch; `view` is that of the node that armed it."""

    slot: Slot
    at: float
    view: View
    sequence: int
    schedule: str
    timezone: str
    body: bytes

    def is_of(self, trigger: Trigger) -> bool:
        """Whether this is what the trigger says; its time follows from that."""
        return (self.schedule, self.timezone, self.body) == (trigger.schedule, trigger.timezone or "UTC", trigger.body)


class _Anything(Struct):
    pass


class ArmedSchedules:
    """Those of one bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def all(self) -> dict[Slot, Armed]:
        """All that wait, as one replica has them. Raises BusUnavailable."""
        found = [_armed(message) async for message in messages_of(self._bus, subjects.SCHEDULES, f"{subjects.SCHEDULE_PREFIX}>")]
        return {armed.slot: armed for armed in found if armed is not None}

    async def find(self, slot: Slot) -> Armed | None:
        """One of them, read through the stream's leader; None where nothing waits. Raises BusUnavailable, ApiError."""
        message = await self._bus.last_stored(subjects.SCHEDULES, subjects.schedule(*slot))
        return _armed(message) if message is not None else None

    async def arm(self, slot: Slot, trigger: Trigger, at: float, *, then: float | None, view: View, instead_of: int = 0) -> None:
        """Have it fire at a moment, with `then` the one after it. `instead_of` is the sequence of what waits there, 0: nothing does.

        Raises AlreadyStored where it is another, BusUnavailable.
        """
        wait_s = TTL_S[1] if then is None else min(max(then - at, TTL_S[0]), TTL_S[1])
        subject = subjects.schedule(*slot)
        head = [
            ("Nats-Schedule", f"@at {_rfc3339(at)}"),
            ("Nats-Schedule-Target", subjects.due(slot.tenant, slot.function)),
            ("Nats-Schedule-TTL", f"{round(wait_s)}s"),
            ("Nats-Expected-Last-Subject-Sequence", str(instead_of)),
            (VIEW, f"{view.registry}/{view.revision}"),
            *due_head(_due(slot, at)),
        ]
        await self._bus.store(subject, trigger.body, head=encode_head(head) + _event_head(slot, trigger, at))

    async def disarm(self, armed: Armed) -> None:
        """Take it away, where it still waits. Raises BusUnavailable, ApiError."""
        try:
            await self._bus.api(f"STREAM.MSG.DELETE.{subjects.SCHEDULES}", {"seq": armed.sequence, "no_erase": True}, _Anything)
        except ApiError:
            waiting = await self.find(armed.slot)
            if waiting is not None and waiting.sequence == armed.sequence:
                raise  # else it has fired, or somebody was faster: the server says so with the number of any failure


def source_of(slot: Slot) -> str:
    """The source of its events."""
    return f"/faas/{slot.tenant}/{slot.function}/schedule/{slot.number}"


def _due(slot: Slot, at: float) -> Due:
    source, event_id = source_of(slot), _rfc3339(at)
    return Due(
        invocation=invocation_id(slot.tenant, slot.function, source=source, event_id=event_id),
        first_seen=at,
        event_id=event_id,
        source=source,
        subject=subjects.schedule(*slot),
    )


def _event_head(slot: Slot, trigger: Trigger, at: float) -> bytes:
    return binary_head({
        "specversion": "1.0",
        "id": _rfc3339(at),
        "source": source_of(slot),
        "type": TYPE,
        "subject": trigger.schedule,
        "time": _rfc3339(at),
        "datacontenttype": "application/json",
        "timezone": trigger.timezone or "UTC",
    })  # fmt: skip


def _armed(message: StoredMessage) -> Armed | None:
    """None of what is in no schedule's place. What is in one and cannot be read was written by hand: it is as old as can be, and nobody's."""
    tokens = message.subject.removeprefix(subjects.SCHEDULE_PREFIX).split(".")
    if len(tokens) != 3 or not (tokens[2].isascii() and tokens[2].isdigit()):
        return None
    slot = Slot(tokens[0], tokens[1], int(tokens[2][:6]))
    head = {name.lower(): value for name, value in message.headers.items()}
    try:
        registry, _, revision = head[VIEW.lower()].rpartition("/")
        return Armed(
            slot=slot,
            at=datetime.fromisoformat(head["nats-schedule"].removeprefix("@at ")).timestamp(),
            view=View(registry, int(revision)),
            sequence=message.sequence,
            schedule=unquote(head["ce-subject"]),
            timezone=unquote(head["ce-timezone"]),
            body=message.data,
        )
    except (KeyError, ValueError):
        return Armed(slot=slot, at=0.0, view=View("", 0), sequence=message.sequence, schedule="", timezone="", body=b"")


def _rfc3339(at: float) -> str:
    """A whole second: no schedule is finer."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
