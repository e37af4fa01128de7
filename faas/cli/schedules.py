"""`faas schedules`: which schedules functions have, and when each fires next, as the bus has them; no node is asked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from faas.cli.options import Json, Where, console, print_json
from faas.units import format_duration

if TYPE_CHECKING:
    from faas.bus.armed import Armed, Slot
    from faas.triggers import Trigger

SHOWN = 3


class _Row(Struct, frozen=True):
    """One schedule. `next` are seconds since the epoch; unless it is armed they are worked out, and nothing fires."""

    slot: Slot
    trigger: Trigger
    next: list[float]
    armed: bool


def schedules(*, where: Where = Where(), json: Json = False) -> int:  # noqa: B008  # frozen
    """List the schedules of all functions."""
    rows, now = asyncio.run(_rows(where))
    if json:
        print_json([_as_json(row) for row in rows])
    else:
        _print_table(rows, now)
    return 0


async def _rows(where: Where) -> tuple[list[_Row], float]:
    """All of them, and what time it is by the bus."""
    from faas.bus.armed import ArmedSchedules
    from faas.bus.clock import ClockWatch
    from faas.cli.deploy import registry
    from faas.errors import BusUnavailable
    from faas.timetable import slots_of

    async with registry(where) as (bus, registered), ClockWatch.open(bus):
        present = [known for known in await registered.registrations() if not known.withdrawn]
        declared = {slot: trigger for known in present for slot, trigger in slots_of(known.key, known.current.triggers).items()}
        try:
            armed = await ArmedSchedules(bus).all() if declared else {}
        except BusUnavailable:
            armed = {}  # no node has made the stream yet
        now = bus.now()
        return [_row(slot, trigger, armed.get(slot), now=now) for slot, trigger in sorted(declared.items())], now


def _row(slot: Slot, trigger: Trigger, waiting: Armed | None, *, now: float) -> _Row:
    from faas.cron import cron

    is_armed = waiting is not None and waiting.is_of(trigger)
    found = [waiting.at] if waiting is not None and is_armed else []
    try:
        found += cron(trigger.schedule, trigger.timezone).times(found[0] if found else now, SHOWN - len(found))
    except ValueError:
        pass  # a zone that this machine does not know
    return _Row(slot, trigger, found, is_armed)


def _as_json(row: _Row) -> dict[str, object]:
    tenant, function, number = row.slot
    return {
        "tenant": tenant, "function": function, "number": number, "schedule": row.trigger.schedule,
        "timezone": row.trigger.timezone or "UTC", "armed": row.armed,
        "next": [_in_utc(at) for at in row.next],
    }  # fmt: skip


def _in_utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _as_shown(row: _Row) -> list[str]:
    """The next times by the clocks of its time zone; in UTC where this machine does not know that."""
    from faas.cron import cron

    try:
        return [cron(row.trigger.schedule, row.trigger.timezone).local(at) for at in row.next] or ["unknown"]
    except ValueError:
        return [_in_utc(at) for at in row.next] or ["unknown"]


def _print_table(rows: list[_Row], now: float) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("function", "tenant", "schedule", "timezone", "next", "in", "then"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        shown = _as_shown(row)
        wait = format_duration(max(0.0, round(row.next[0] - now))) if row.armed else "not armed"
        table.add_row(
            row.slot.function, row.slot.tenant, row.trigger.schedule, row.trigger.timezone or "UTC", shown[0], wait, ", ".join(shown[1:])
        )
    out = console()
    out.print(table)
    if not rows:
        out.print('no function has a schedule; write [[trigger]] schedule = "*/5 * * * *" into its function.toml')
    elif not all(row.armed for row in rows):
        out.print("not armed: no node serves it; start one with `faas up`, or see `faas functions`")
