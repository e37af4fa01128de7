"""What the author of a function sees: the event, the context, and the words for ends that are not results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any


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


@dataclass(slots=True)
class Context:
    """What a handler knows of its invocation. In `load` there is no event yet: `invocation_id` is "" and `attempt` 0."""

    function: str
    tenant: str
    tags: Mapping[str, str] = field(default_factory=dict)
    invocation_id: str = ""
    attempt: int = 0
    device: str = "cpu"
    gpu: None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("faas"))
    _deadline_monotonic: float | None = None
    _make_event: Callable[[], Event] | None = None
    _event: Event | None = None

    @property
    def event(self) -> Event | None:
        """The whole event; made when it is first asked for, since most handlers never look."""
        if self._event is None and self._make_event is not None:
            self._event = self._make_event()
        return self._event

    @property
    def deadline(self) -> datetime | None:
        """When the attempt is killed, by this machine's clock; None while loading."""
        return None if self._deadline_monotonic is None else datetime.now(UTC) + timedelta(seconds=self.remaining_s())

    def remaining_s(self) -> float:
        """Seconds until the attempt is killed, never negative; infinite while loading."""
        return float("inf") if self._deadline_monotonic is None else max(0.0, self._deadline_monotonic - time.monotonic())
