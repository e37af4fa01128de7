"""When a schedule is due: cron of five or six fields in a time zone, as cronsim has it. Pure; whoever asks brings the moment.

Five fields are minute, hour, day of the month, month and day of the week; of six the first is the second. Daylight saving is cronsim's, which
does as Debian's cron does: with five fields, a time of day that the clocks leave out is due as soon as they go on, and one that comes twice is due
the first time; a field of minutes or hours that begins with a star, and every schedule of six fields, goes by time as it passes.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

CHARACTERS = 100
"""Of a schedule and of the name of a zone: whatever is longer has a list that a step or a range says shorter."""


class Cron:
    """A schedule; without a time zone in UTC. Raises ValueError, with a sentence for whoever wrote it, where it is none or can never be due."""

    def __init__(self, schedule: str, timezone: str) -> None:
        self._zone = _zone(timezone)
        self._schedule = schedule
        if len(schedule) > CHARACTERS or not (schedule.isascii() and schedule.isprintable()):
            raise ValueError(f"is no schedule of at most {CHARACTERS} plain characters; write one like */5 * * * *")
        try:
            first = next(CronSim(schedule, datetime(2024, 1, 1, tzinfo=UTC)), None)
        except CronSimError as error:
            raise ValueError(
                f"{str(error).lower()}; write five fields, minute hour day month weekday, like */5 * * * *, or six with seconds first"
            ) from error
        if first is None:
            raise ValueError("is never due; there is no such day")

    def after(self, moment: float) -> float | None:
        """The first time that it is due after a moment, both in seconds since the epoch; None where it never is again."""
        return next(iter(self.times(moment, 1)), None)

    def times(self, moment: float, count: int) -> list[float]:
        """The next times that it is due after a moment, at most `count`."""
        found = (due.timestamp() for due in CronSim(self._schedule, datetime.fromtimestamp(moment, self._zone)))
        # In an hour that comes twice cronsim forgets which of the two the moment was in: what it says of the first is over.
        return list(islice((due for due in found if due > moment), count))

    def local(self, moment: float) -> str:
        """A moment as the clocks of the time zone show it: RFC 3339 with the offset, "Z" in UTC."""
        return datetime.fromtimestamp(moment, self._zone).isoformat(timespec="seconds").replace("+00:00", "Z")


@lru_cache(maxsize=1024)
def cron(schedule: str, timezone: str) -> Cron:
    """The same, read once: a schedule is asked for its next time whenever it was due. Raises as `Cron`."""
    return Cron(schedule, timezone)


def _zone(name: str) -> tzinfo:
    """The time zone of a name. Raises ValueError, in words, where there is none here."""
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name[: CHARACTERS + 1])
    except (OSError, LookupError, ValueError) as error:
        raise ValueError(f"{name[:CHARACTERS]!r} is no time zone that this machine knows; write it like Europe/Berlin") from error
