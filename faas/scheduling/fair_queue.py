"""Which flow gets the next free slot: start-time fair queueing, weighted. Pure; knows no slot, no worker and no time.

A flow is one function of one tenant. Policy: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996, equations 4 and 5: a
start gets the tag `max(v, finish)` of its flow, and `finish` becomes that tag + cost / weight; the smallest tag is next, and v is
the tag of what started last. With several slots at once this is SFQ(D) of Jin, Chase and Kaur, SIGMETRICS 2004. Over any
interval in which two flows wait, what they got differs, each divided by its weight, by at most one start of each. A flow that
comes and has had nothing lately waits for at most one start of every other, however long their queues are.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Flow = tuple[str, str]
"""(tenant, function)."""

Bill = tuple[float, float]
"""(cost, weight) of a start; the cost is what it takes of a slot, in any one unit."""

LEAST_COST = 1e-6
"""Of a start, so that its flow moves on: one that costs nothing would keep the smallest tag for ever."""
STALE_ENTRIES = 64
"""Of flows that were emptied while they waited; more of them than this and the flows that wait are swept out."""

T = TypeVar("T")


@dataclass(slots=True)
class _Waiting(Generic[T]):
    """A flow with items. `start` is the tag of its first one; `turn` names its entry in the heap, and breaks ties by who came first."""

    start: float
    turn: int
    items: deque[T] = field(default_factory=deque)
    held: bool = False  # it was next and might not start


class FairQueue(Generic[T]):
    """Items wait in their flow, first in first out; flows share by weight."""

    def __init__(self) -> None:
        self._waiting: dict[Flow, _Waiting[T]] = {}
        self._heap: list[tuple[float, int, Flow]] = []
        self._finish: dict[Flow, float] = {}
        self._virtual = 0.0
        self._turns = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._waiting

    def put(self, flow: Flow, item: T) -> None:
        """Add an item at the end of its flow; a flow that was empty takes no credit from the time in which it was."""
        waiting = self._waiting.get(flow)
        if waiting is None:
            waiting = self._waiting[flow] = _Waiting(self._tag(flow), 0)
            self._push(flow, waiting)
        waiting.items.append(item)

    def remove(self, flow: Flow, item: T) -> bool:
        """Take an item out, wherever it waits; False where it does not wait any more. It costs its flow nothing."""
        waiting = self._waiting.get(flow)
        if waiting is None or item not in waiting.items:
            return False
        waiting.items.remove(item)
        if not waiting.items:
            del self._waiting[flow]
        return True

    def take(self, may_start: Callable[[Flow], bool], bill: Callable[[Flow], Bill]) -> tuple[Flow, T] | None:
        """The first item of the flow with the smallest tag among those that may start one. `bill` says what it costs.

        One that might not start when it was next is held, not owed: it comes back with the tag of a flow that has just come, or its
        own where that is later.
        """
        passed: list[tuple[float, int, Flow]] = []
        taken = None
        while self._heap and taken is None:
            entry = self._heap[0]
            _, turn, flow = entry
            waiting = self._waiting.get(flow)
            if waiting is None or waiting.turn != turn:
                heapq.heappop(self._heap)
                continue  # it was emptied meanwhile
            if not may_start(flow):
                waiting.held = True
                if len(self._heap) == 1:
                    break  # nobody is behind it, so it may stay
                passed.append(heapq.heappop(self._heap))
                continue
            heapq.heappop(self._heap)
            if waiting.held and waiting.start < self._virtual:
                waiting.start, waiting.held = self._virtual, False
                self._push(flow, waiting)
            else:
                taken = flow, waiting.items.popleft()
                self._charge(flow, waiting.start, bill(flow))
                if waiting.items:
                    waiting.start, waiting.held = self._finish[flow], False
                    self._push(flow, waiting)
                else:
                    del self._waiting[flow]
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return taken

    def pass_by(self, flow: Flow, bill: Bill) -> None:
        """Count a start that did not wait, since nobody did who might have started."""
        self._charge(flow, self._tag(flow), bill)

    def rest(self) -> None:
        """Nothing runs any more: the busy period has ended, and what flows had in it counts no longer."""
        if not self._waiting:
            self._finish.clear()
            self._heap.clear()
            self._virtual = 0.0

    def clear(self) -> list[T]:
        """Take out everything that waits."""
        items = [item for waiting in self._waiting.values() for item in waiting.items]
        self._waiting.clear()
        self._heap.clear()
        return items

    def _tag(self, flow: Flow) -> float:
        return max(self._virtual, self._finish.get(flow, 0.0))

    def _charge(self, flow: Flow, start: float, bill: Bill) -> None:
        cost, weight = bill
        self._virtual = max(self._virtual, start)
        self._finish[flow] = start + max(cost, LEAST_COST) / weight

    def _push(self, flow: Flow, waiting: _Waiting[T]) -> None:
        self._turns += 1
        waiting.turn = self._turns
        if len(self._heap) > 2 * len(self._waiting) + STALE_ENTRIES:
            self._heap = [entry for entry in self._heap if (known := self._waiting.get(entry[2])) is not None and known.turn == entry[1]]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (waiting.start, self._turns, flow))
