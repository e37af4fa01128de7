"""`faas` with a crash point: the node ends itself by SIGKILL at a named place of its code, the n-th time that it gets there.

CRASH_AT="after_outcome:3"; SKEW_S="3600" has its wall clock go wrong; BREAK="flush" breaks its client of the bus at SIGUSR2; LAG="file" takes down how late its
loop is. Hooks of the tests alone: nothing in the package knows of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

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
    right = time.time
    time.time = lambda: right() + by_s


# ---------------------------------------------------------------- a client of the bus that dies without a word


async def _raise(error: Exception) -> None:
    raise RuntimeError("a callback that fails")


async def _by_error(client: Any) -> None:
    """An exception in `error_cb`, called in the read loop, between two messages."""
    parse = client._ps.parse

    async def parse_and_fail(data: bytes) -> None:
        await parse(data)
        await client._process_err("'permissions violation for publish to \"x\"'")

    client._error_cb, client._ps.parse = _raise, parse_and_fail


async def _by_flush(client: Any) -> None:
    """What a flush leaves that gave up before its PONG was there."""
    given_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    given_up.cancel()
    await client._send_ping(given_up)


async def _by_reading(client: Any) -> None:
    """A read loop that has ended."""
    client._reading_task.cancel()


BREAKS = {"error": _by_error, "flush": _by_flush, "reading": _by_reading}


def break_at_signal(how: str) -> None:
    """Do that to the client that is in use when SIGUSR2 comes, once."""
    from faas.bus.connection import Bus

    connect = Bus._connect

    async def connecting(bus: Bus) -> None:
        await connect(bus)
        loop, client = asyncio.get_running_loop(), bus._client
        loop.remove_signal_handler(signal.SIGUSR2)
        if how not in broken:
            loop.add_signal_handler(signal.SIGUSR2, lambda: (broken.add(how), breaking.append(loop.create_task(BREAKS[how](client)))))

    broken: set[str] = set()
    breaking: list[asyncio.Task[None]] = []
    Bus._connect = connecting  # type: ignore[method-assign]


# ---------------------------------------------------------------- I5

LAG_EVERY_S = 0.05


def take_lag(file: str) -> None:
    """Write down, twenty times a second, how long the node's loop takes until it does what another thread asks of it."""
    from faas import app

    serve = app.serve

    async def serving(*args: Any, **kwargs: Any) -> None:
        loop = asyncio.get_running_loop()
        done = threading.Event()

        def take(lags: TextIO, asked_monotonic: float) -> None:
            if not lags.closed:
                lags.write(f"{time.monotonic() - asked_monotonic:.6f}\n")

        def watch() -> None:
            with open(file, "a", buffering=1) as lags:
                while not done.wait(LAG_EVERY_S):
                    loop.call_soon_threadsafe(take, lags, time.monotonic())

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            await serve(*args, **kwargs)
        finally:
            done.set()
            watching.join()

    app.serve = serving


if __name__ == "__main__":
    from faas.cli.main import main

    if by := os.environ.get("SKEW_S"):
        skew(float(by))
    if how := os.environ.get("BREAK"):
        break_at_signal(how)
    if file := os.environ.get("LAG"):
        take_lag(file)
    if at := os.environ.get("CRASH_AT"):
        name, _, number = at.partition(":")
        arm(name, int(number or 1))
    main()
