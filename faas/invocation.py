"""One event for one function, on its way through a node: its clocks there, and what may still end it. Lives in one process; what crosses boundaries is `model`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from faas.model import Control, Due, Event, FunctionVersion
from faas.objects import ObjectInfo


@dataclass(slots=True, eq=False)
class Invocation:
    """One event for one function, on its way through this node."""

    id: str
    function: FunctionVersion
    event: Event
    control: Control
    received_monotonic: float
    waited_us: int  # age of a stored event when this node got it for its first attempt, else 0
    start_by_monotonic: float  # not started after this moment; `late_reason` says which clock it is
    late_reason: Literal["queue_timeout", "deadline"]
    deadline_monotonic: float  # not running after this moment; inf where nobody set one
    attempts: int = 0  # attempts so far that left a record
    on_leased: Callable[[], None] | None = None  # told when it has its worker and waits no more
    billable_attempts: int = 0
    items: int = 0  # of its stream, that the last attempt has sent
    stored: bool = False  # the event is in a stream, and comes again should this node fail
    claimed: ObjectInfo | None = None  # the object that is its payload, once it was looked up
    payload_file: str = ""  # in its worker's folder, where the payload has been brought there
    due: Due | None = None  # what it was before it came over `faas.due...`
    cancelled: bool = False
    stage: Literal["", "queued", "loading", "running"] = ""  # of its attempt; "" while it is looked up, or its end is written
    worker: str = ""  # that has it, or had it last
    since_monotonic: float = 0.0  # when it got that worker, or began to run
    on_cancel: Callable[[], None] | None = None  # ends what it does at this moment: waiting for its turn, or running

    def cancel(self) -> None:
        """Ask it to end; it ends as `cancelled` where it has not ended yet."""
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    @property
    def payload_bytes(self) -> int:
        """The size of its payload, wherever that is."""
        return len(self.event.data) if self.claimed is None else self.claimed.size

    @property
    def timeout_s(self) -> float:
        """The execution clock: the function's, or the event's where that is shorter; never negative."""
        limit = float(self.function.spec.limits.timeout_s)  # plain, as the wire takes it
        return limit if self.control.timeout_s is None else min(limit, self.control.timeout_s)
