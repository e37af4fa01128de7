"""What is told of invocations: questions that nodes answer about them, the answers, and the lines that functions log. Pure data; knows no bus, no database and no clock.

Moments are milliseconds since the epoch, 0 where there is none yet. A field that an older or newer node does not know is left at its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

RUNS_LIMIT = 500
"""Of one answer: it has to go into one message."""

Stage = Literal["queued", "loading", "running"]


class Filter(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The question `runs`: which ones, newest first. With `invocation` that one alone, in full."""

    invocation: str = ""
    function: str = ""
    tenant: str = ""
    outcome: str = ""  # "open" for those that have not ended
    since_ms: int = 0
    until_ms: int = 0
    limit: int = 50


class Run(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One invocation. Without an `outcome` it has not ended; `accepted_ms` is 0 where nothing stored its event."""

    invocation: str
    tenant: str
    function: str
    version: str = ""
    outcome: str = ""
    reason: str = ""
    detail: str = ""
    attempts: int = 0
    start: str = ""
    queue_us: int = 0
    load_us: int = 0
    run_us: int = 0
    node: str = ""  # that made its last attempt
    event_id: str = ""
    subject: str = ""
    stream: str = ""
    sequence: int = 0
    traceparent: str = ""
    redrive_of: str = ""  # the invocation whose dead letter this one came from
    accepted_ms: int = 0
    ended_ms: int = 0


class Try(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One usage record of an invocation: `kind` is "attempt", or "load" for the load that an attempt waited for."""

    record_id: str
    invocation: str
    attempt: int
    kind: str
    billable: bool = True
    node: str = ""
    environment: str = ""
    outcome: str = ""
    reason: str = ""
    detail: str = ""
    start: str = ""
    started_at: str = ""
    ended_at: str = ""
    queue_us: int = 0
    load_us: int = 0
    run_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cost_nanousd: int = 0
    meters: Mapping[str, int] = {}


class Letter(Struct, frozen=True, kw_only=True):
    """Where the dead letter of an invocation stands."""

    stream: str
    sequence: int
    reason: str
    at_ms: int


class Place(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the event of an invocation that has not ended stands, as far as the bus tells."""

    delivered: bool = False  # some node got it
    before: int = 0  # events of its function that wait in the stream, at most so many before it
    retry_at_ms: int = 0  # a schedule brings it back then
    served: bool = True  # its function has a consumer
    gone: bool = False  # its stream does not hold it any more


class Told(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `runs`. `absent` says why there is none; `behind` how many messages of the bus it does not know yet."""

    node: str
    absent: str = ""
    behind: int = 0
    runs: tuple[Run, ...] = ()
    more: bool = False  # there are others that fit the question
    tries: tuple[Try, ...] = ()
    letter: Letter | None = None
    place: Place | None = None


class Held(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An invocation that a node has in its hands; `since_ms` is when its stage began."""

    invocation: str
    tenant: str
    function: str
    stage: Stage
    since_ms: int
    attempt: int
    worker: str = ""
    why: str = ""  # what it waits for, where it is queued


class Holding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `why`: what this node knows of the invocation at this moment."""

    node: str
    held: Held | None = None
    ending: bool = False  # its end is being written


class LogLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a function. `time` is RFC 3339 with microseconds, UTC; `stream` stdout, stderr, log or progress; `fraction` that of a progress."""

    time: str
    level: str
    stream: str
    message: str
    invocation: str
    attempt: int
    logger: str = ""
    fraction: float | None = None


class Cancelled(Struct, frozen=True, kw_only=True):
    """What became of a request to cancel: `cancelled` says whether it won; `outcome` is how the invocation had ended already.

    `known` False: no such invocation waits or runs.
    """

    cancelled: bool
    known: bool = True
    outcome: str = ""
    error: str = ""


def ending(outcome: str, reason: str, *, between: str = ": ") -> str:
    """How something ended, in words: `failed: error`, and where both are one word that word once, like `cancelled`."""
    return between.join(dict.fromkeys(filter(None, (outcome, reason))))
