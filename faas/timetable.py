"""Keeps the schedules of functions armed: of each the next time, by any node that serves the function, whoever comes first.

A schedule is what the registry says, so a deploy, a roll-back or a removal changes it, and nodes with different folders agree. Nobody is elected:
every node swaps against what waits, and only one swap holds. What was armed by somebody who has read further in the registry is left alone.
Times that passed while nothing was armed are gone; one that was armed fires late. Starts nothing: what fires is an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from msgspec import Struct

from faas.bus.armed import Armed, ArmedSchedules, Slot, View
from faas.bus.connection import ApiError, Bus
from faas.concurrency import side_by_side
from faas.cron import cron
from faas.errors import AlreadyStored, BusUnavailable
from faas.triggers import Trigger

log = structlog.get_logger()

LOOK_S = 60.0
"""So often all that is armed is looked at, behind what has changed: a stream may have been emptied or made anew."""
FIRED_S = 0.1
"""A server fires 2 to 5 ms after the time; a swap that comes before that is refused, and tried again."""
AGAIN_S = (0.25, 5.0)
"""Until the next try where one is late to fire, or the bus is away; doubled each time."""
BEHIND_S = 1.0
"""A time that has passed by so little while the one before it was fired is still armed: else a schedule of every second would skip some."""
SHOWN = 3

Key = tuple[str, str]
"""(tenant, function)."""
Registered = tuple[View, Mapping[Key, Sequence[Trigger]], Collection[Key]]
"""How far the registry was read, the triggers of every function in it that is not withdrawn, and whose are served here."""


class Known(Struct, frozen=True, kw_only=True):
    """The schedules of all functions that the registry has and that are not withdrawn; of `served` functions this node keeps them armed."""

    view: View
    declared: Mapping[Slot, Trigger]
    served: Collection[Key]


class Step(Struct, frozen=True, kw_only=True):
    """What to do about one schedule: arm it instead of what waits there, or, without a trigger, take that away."""

    slot: Slot
    trigger: Trigger | None = None
    instead_of: Armed | None = None


def slots_of(key: Key, triggers: Sequence[Trigger]) -> dict[Slot, Trigger]:
    """The schedules of one function, numbered."""
    return {Slot(*key, number): trigger for number, trigger in enumerate(one for one in triggers if one.schedule)}


def known_of(registered: Registered) -> Known:
    """The schedules among the triggers."""
    view, triggers, served = registered
    declared = {slot: trigger for key, found in triggers.items() for slot, trigger in slots_of(key, found).items()}
    return Known(view=view, declared=declared, served=served)


def steps(known: Known, armed: Mapping[Slot, Armed]) -> list[Step]:
    """What makes the armed schedules those that are known. Nothing that whoever armed it knew better."""
    found = []
    for slot, waiting in armed.items():
        trigger = known.declared.get(slot)
        if waiting.view <= known.view and (trigger is None or not waiting.is_of(trigger)):
            found.append(Step(slot=slot, trigger=trigger, instead_of=waiting))
    found += [Step(slot=slot, trigger=trigger) for slot, trigger in known.declared.items() if slot not in armed]
    return [step for step in found if step.trigger is None or step.slot[:2] in known.served]


@dataclass(slots=True)
class _Next:
    """One schedule that this node keeps armed: when it fires next, by the bus's clock, and when to look whether it has."""

    at: float
    look_at: float
    again_s: float = AGAIN_S[0]


class Timetable:
    """`open` it, and it keeps armed what `registered` says until the block is left; `doubt` it where that has changed."""

    def __init__(self, bus: Bus, registered: Callable[[], Registered]) -> None:
        self._bus, self._registered, self._armed = bus, registered, ArmedSchedules(bus)
        self._known = known_of(registered())
        self._next: dict[Slot, _Next] = {}
        self._wake = asyncio.Event()
        self._doubtful = True
        self._look_monotonic = 0.0
        self._again_s, self._again_monotonic = AGAIN_S[0], 0.0  # of the bus itself

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, registered: Callable[[], Registered], on_change: list[Callable[[], None]]) -> AsyncIterator[Timetable]:
        """Look at once, and whenever there is a reason to: `on_change` is called where something else is registered."""
        table = cls(bus, registered)
        for reasons in (bus.on_reconnect, on_change):
            reasons.append(table.doubt)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(table._run())
            try:
                yield table
            finally:
                working.cancel()
                for reasons in (bus.on_reconnect, on_change):
                    reasons.remove(table.doubt)

    def doubt(self) -> None:
        """Look at all that is armed, and at what ought to be: either may have changed without a word."""
        self._doubtful = True
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                if self._doubtful or time.monotonic() >= self._look_monotonic:
                    self._doubtful = False
                    await self._look()
                await side_by_side([self._go_on(slot, upcoming) for slot, upcoming in self._due()])
                self._again_s = AGAIN_S[0]
            except (BusUnavailable, ApiError) as error:
                log.warning("schedules.not_armed", error=str(error))
                self._doubtful = True
                self._again_monotonic = time.monotonic() + self._again_s
                self._again_s = min(2 * self._again_s, AGAIN_S[1])

    # ------------------------------------------------------------ when

    def _due(self) -> list[tuple[Slot, _Next]]:
        now = self._bus.now()
        return [(slot, upcoming) for slot, upcoming in self._next.items() if upcoming.look_at <= now]

    def _wait_s(self) -> float:
        """Until something is due to be armed again, or to be looked at."""
        now, now_monotonic = self._bus.now(), time.monotonic()
        look_s = 0.0 if self._doubtful else self._look_monotonic - now_monotonic
        due_s = min((upcoming.look_at for upcoming in self._next.values()), default=now + LOOK_S) - now
        return max(0.0, min(look_s, due_s), self._again_monotonic - now_monotonic)

    # ------------------------------------------------------------ what

    async def _look(self) -> None:
        """Make all that is armed what is known. Raises BusUnavailable, ApiError."""
        known = self._known = known_of(self._registered())
        self._look_monotonic = time.monotonic() + LOOK_S
        if not known.view.registry:
            return  # nothing was read yet: what is armed is right as far as anybody here knows
        armed = await self._armed.all()
        self._next = {}
        for slot, waiting in armed.items():
            self._note(slot, waiting)
        await side_by_side([self._take(step, known.view) for step in steps(known, armed)])

    def _note(self, slot: Slot, waiting: Armed) -> None:
        """What waits is what this node goes on from, unless others know better what that is, or it is none of this node's."""
        trigger = self._known.declared.get(slot)
        if trigger is None or slot[:2] not in self._known.served or (waiting.view > self._known.view and not waiting.is_of(trigger)):
            self._next.pop(slot, None)
        else:
            self._next[slot] = _Next(waiting.at, waiting.at + FIRED_S)

    async def _take(self, step: Step, view: View) -> None:
        waiting, function = step.instead_of, step.slot.function
        if step.trigger is None:
            if waiting is not None:
                await self._armed.disarm(waiting)
                log.info("schedule.removed", function=function, schedule=waiting.schedule, timezone=waiting.timezone)
            return
        if await self._arm(step.slot, step.trigger, self._bus.now(), view=view, instead_of=waiting.sequence if waiting else 0):
            due = cron(step.trigger.schedule, step.trigger.timezone)
            shown = [due.local(at) for at in due.times(self._bus.now(), SHOWN)]
            log.info(
                "schedule.armed", function=function, schedule=step.trigger.schedule, timezone=step.trigger.timezone or "UTC", next=shown
            )

    async def _go_on(self, slot: Slot, passed: _Next) -> None:
        """Arm the time after one that has passed; where that one has not fired, look again later."""
        now = self._bus.now()
        await self._arm(slot, self._known.declared[slot], max(passed.at, now - BEHIND_S), view=self._known.view)
        upcoming = self._next.get(slot)
        if upcoming is not None and upcoming.at <= passed.at:
            self._next[slot] = _Next(passed.at, now + passed.again_s, min(2 * passed.again_s, AGAIN_S[1]))

    async def _arm(self, slot: Slot, trigger: Trigger, after: float, *, view: View, instead_of: int = 0) -> bool:
        """Arm the first time after a moment; False where another waits there, which is then what is waited for."""
        try:
            times = cron(trigger.schedule, trigger.timezone).times(after, 2)
            problem = "" if times else "it is never due again"
        except ValueError as error:  # this machine has other time zones than the one that deployed it
            times, problem = [], str(error)
        if problem:
            log.warning("schedule.not_armed", function=slot.function, schedule=trigger.schedule, timezone=trigger.timezone, problem=problem)
            self._next.pop(slot, None)
            return False
        at, *more = times
        try:
            await self._armed.arm(slot, trigger, at, then=more[0] if more else None, view=view, instead_of=instead_of)
        except AlreadyStored:
            if (waiting := await self._armed.find(slot)) is not None:
                self._note(slot, waiting)
                if waiting.view <= view and not waiting.is_of(trigger):  # older, or written by hand: a look replaces it
                    self._doubtful = True
                    self._again_monotonic = time.monotonic() + AGAIN_S[0]
            return False
        self._next[slot] = _Next(at, at + FIRED_S)
        return True
