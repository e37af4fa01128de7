"""`faas` with a crash point: the node ends itself by SIGKILL at a named place of its code, the n-th time that it gets there.

CRASH_AT="after_outcome:3"; SKEW_S="3600" has its wall clock go wrong. A hook of the tests alone: nothing in the package knows of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

POINTS = {
    "running": ("faas.pool.worker", "Worker", "invoke", False),
    "after_outcome": ("faas.bus.outcomes", "Outcomes", "store", True),
    "before_ack": ("faas.bus.pull", "Delivery", "ack", False),
    "after_ack": ("faas.bus.pull", "Delivery", "ack", True),
    "after_attempts": ("faas.bus.outcomes", "Outcomes", "store_attempts", True),
    "after_schedule": ("faas.bus.schedules", "Schedules", "retry", True),
    "payload_fetched": ("faas.bus.payloads", "Payloads", "fetch", True),
    "before_payload": ("faas.bus.payloads", "Payloads", "put", False),
    "payload_stored": ("faas.bus.payloads", "Payloads", "put", True),
    "before_letter": ("faas.bus.letters", "Letters", "bury", False),
}
"""name -> module, class, method, and whether it crashes behind it. `after_outcome` lies before the usage, `before_ack` behind it."""


def arm(point: str, left: int) -> None:
    """Crash at the point, the `left`-th time."""
    import importlib

    module, kind, method, after = POINTS[point]
    owner = getattr(importlib.import_module(module), kind)
    original: Callable[..., Awaitable[Any]] = getattr(owner, method)
    count = 0

    async def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == left and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await original(*args, **kwargs)
        if count >= left and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, crashing)


def skew(by_s: float) -> None:
    """Have the node's wall clock go wrong by so much; its monotonic clock is right."""
    import time

    right = time.time
    time.time = lambda: right() + by_s


if __name__ == "__main__":
    from faas.cli.main import main

    if by := os.environ.get("SKEW_S"):
        skew(float(by))
    if at := os.environ.get("CRASH_AT"):
        name, _, number = at.partition(":")
        arm(name, int(number or 1))
    main()
