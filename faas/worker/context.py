"""What the author of a function sees: the event, the context, and the words for ends that are not results.

A context works without a node too, so that a handler can be called in a test: what it publishes then goes nowhere.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from faas.worker import wire
from faas.worker.secrets import Secrets
from faas.worker.trace import span_of

SAID_EVERY_S = 0.1
"""Between two words on progress, or on meters: a training loop reports thousands of steps a second."""
SAID_SHARE = 0.01
"""Of the time that an attempt has run, between two words on progress: so a week of them is some thousand, and fits into the log of one attempt."""
PROGRESS_CHARACTERS = 2000
METERS = 20
METER_CHARACTERS = 64
EVENT_BYTES = 2**20 - 4096


class Retry(Exception):
    """Raise it to be run again after `after_s` seconds, while attempts are left."""

    def __init__(self, after_s: float = 0.0) -> None:
        super().__init__(f"retry after {after_s} s")
        self.after_s = float(after_s)
        if not 0 <= self.after_s < float("inf"):
            raise ValueError(f"faas.Retry({after_s!r}): seconds, zero or more")


class Reject(Exception):
    """Raise it for an event that can never succeed: it ends as `rejected` and is not tried again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)


@dataclass(slots=True, frozen=True)
class Event:
    """A CloudEvent. `data` is a JSON value where the content type is JSON, else bytes; `time` is aware, or None."""

    id: str
    source: str
    type: str
    subject: str
    time: datetime | None
    datacontenttype: str
    dataschema: str
    extensions: Mapping[str, str]
    data: Any


@dataclass(slots=True, frozen=True)
class Result:
    """A result with a content type of its own; `data` is bytes or text."""

    data: bytes | str
    content_type: str = "application/octet-stream"


@dataclass(slots=True, frozen=True)
class Gpu:
    """The device that an attempt holds. `uuid` is NVML's; `memory_bytes` what is reserved of it."""

    uuid: str
    name: str
    memory_bytes: int


class Checkpoint:
    """State of an invocation that a later attempt goes on from. Not supported yet: using it raises NotImplementedError."""

    def save(self, state: object, step: int = 0) -> NoReturn:
        raise NotImplementedError("ctx.checkpoint is not supported yet")

    def load(self) -> NoReturn:
        raise NotImplementedError("ctx.checkpoint is not supported yet")


@dataclass(slots=True)
class Context:
    """What a handler knows of its invocation. In `load` there is no event yet: `invocation_id` is "" and `attempt` 0."""

    function: str = "function"
    tenant: str = "default"
    tags: Mapping[str, str] = field(default_factory=dict)
    invocation_id: str = ""
    attempt: int = 0
    device: str = "cpu"
    gpu: Gpu | None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("faas"))
    mounts: Mapping[str, Path] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=Secrets)
    budget: None = None  # until functions have one
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    meters: dict[str, int] = field(default_factory=dict)
    _send: Callable[[wire.Said], None] | None = None  # None: there is no node
    _over: bool = False  # the attempt has ended; a thread of it may go on
    _hide: Callable[[str], str] = str  # takes the values of its secrets out of a text
    _is_cancelled: Callable[[], bool] | None = None
    _began_monotonic: float = field(default_factory=time.monotonic)
    _progress_due: float = 0.0
    _meters_due: float = 0.0
    _complete: bool = False  # progress is 1, and that was said
    _deadline_monotonic: float | None = None
    _make_event: Callable[[], Event] | None = None
    _event: Event | None = None
    _published: int = 0
    _caused_by: str = ""  # the traceparent of the event

    @property
    def event(self) -> Event | None:
        """The whole event; made when it is first asked for, since most handlers never look."""
        if self._event is None and self._make_event is not None:
            self._event = self._make_event()
        return self._event

    @property
    def traceparent(self) -> str:
        """W3C trace context of this attempt, for whatever it calls: a child of the event's, else the begin of a trace; "" while loading."""
        return span_of(self._caused_by, self.invocation_id, self.attempt) if self.invocation_id else ""

    @property
    def deadline(self) -> datetime | None:
        """When the attempt is killed, by this machine's clock; None while loading."""
        return None if self._deadline_monotonic is None else datetime.now(UTC) + timedelta(seconds=self.remaining_s())

    def remaining_s(self) -> float:
        """Seconds until the attempt is killed, never negative; infinite while loading."""
        return float("inf") if self._deadline_monotonic is None else max(0.0, self._deadline_monotonic - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this attempt to stop; a blocking handler looks now and then, an async one gets CancelledError."""
        return self._is_cancelled is not None and self._is_cancelled()

    def progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the attempt is, from 0 to 1. What comes sooner than a tenth of a second after the last, or a hundredth of what has passed, is left out; the first 1 never is."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"ctx.progress({fraction!r}): a fraction from 0 to 1")
        now = time.monotonic()
        if now >= self._progress_due or (fraction == 1 and not self._complete):
            self._progress_due = now + max(SAID_EVERY_S, SAID_SHARE * (now - self._began_monotonic))
            self._complete = fraction == 1
            text = wire.encodable(self._hide(str(message))[:PROGRESS_CHARACTERS])
            self._say(wire.Log(stream="progress", text=text, fraction=float(fraction), at=time.time()))

    def meter(self, name: str, n: int = 1) -> None:
        """Count something of the author's own, like tokens; the sum is in the usage record. `n` is a whole number, zero or more."""
        if not isinstance(n, int) or n < 0 or self.meters.get(name, 0) + n > 2**53:
            raise ValueError(f"ctx.meter({name!r}, {n!r}): a whole number, zero or more")
        if name not in self.meters:
            if not isinstance(name, str) or not name.isidentifier() or len(name) > METER_CHARACTERS or not name.isascii():
                raise ValueError(f"ctx.meter({name!r}): a name of letters, digits and _, at most {METER_CHARACTERS}")
            if len(self.meters) >= METERS:
                raise ValueError(f"ctx.meter({name!r}): an attempt has {METERS} meters at most")
        self.meters[name] = self.meters.get(name, 0) + n
        now = time.monotonic()
        if now >= self._meters_due:
            self._meters_due = now + SAID_EVERY_S
            self._say(wire.Metered(meters=self.meters))

    def publish(self, subject: str, data: object = None, *, content_type: str = "") -> None:
        """Publish an event: bytes as they are, anything else as JSON. It is on its way at once, and stored before the outcome is.

        What the same attempt publishes again after a crash has the same id. Raises ValueError for what cannot be published.
        """
        _check_subject(subject)
        body = data if isinstance(data, bytes) else b"" if data is None else msgspec.json.encode(data)
        kind = content_type or ("application/octet-stream" if isinstance(data, bytes) else "application/json")
        if not kind.isascii() or not kind.isprintable() or len(kind) > 200:
            raise ValueError(f"ctx.publish: {kind[:80]!r} is no content type")
        if len(body) > EVENT_BYTES:
            raise ValueError(f"ctx.publish: the event has {len(body)} bytes; {EVENT_BYTES} at most")
        self._published += 1
        if self._published > wire.EVENTS:
            raise ValueError(f"ctx.publish: an attempt may publish {wire.EVENTS} events")
        digest = hashlib.sha256(b"\0".join((subject.encode(), body))).hexdigest()[:16]
        self._say(wire.Emit(subject=subject, id=f"{self.invocation_id}.{self._published}.{digest}", data=body, content_type=kind))

    def _say(self, message: wire.Said) -> None:
        if self._over:
            raise RuntimeError("the attempt has ended: nothing can be published, counted or reported for it any more")
        if self._send is not None:
            self._send(message)


def _check_subject(subject: str) -> None:
    tokens = subject.split(".")
    if len(subject) > 255 or not all(tokens) or not subject.isprintable() or any(ch in subject for ch in "*> "):
        raise ValueError(f"ctx.publish: {subject[:80]!r} is no subject; write tokens joined by dots, without wildcards")
    if tokens[0] == "faas" or subject.startswith(("$", "_INBOX", "_R_.")):
        raise ValueError(f"ctx.publish: {subject[:80]!r} belongs to the runtime or to NATS")
