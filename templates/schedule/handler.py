"""Says from which moment on to look back, each time that it is due. Replace `handle` with what your function does."""

from datetime import UTC, datetime, timedelta

import faas


def handle(event: faas.Event, ctx: faas.Context) -> dict[str, str]:
    """Run once for each time that the schedule is due: `event.time`, however late it runs. `event.data` is the trigger's payload."""
    due = event.time or datetime.now(UTC)  # `faas invoke` brings no time
    since = due - timedelta(days=event.data.get("days", 1))
    ctx.log.info("due at %s", due)
    return {"since": since.isoformat(), "until": due.isoformat()}
