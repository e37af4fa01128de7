"""Which flow gets the next free slot: each waiting flow in its turn. Pure; knows no slot, no worker and no time.

A flow is one function of one tenant. Going round the flows bounds what a flood of one can do to another: a flow waits
for at most one start of every other flow, however long their queues are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Flow = tuple[str, str]
"""(tenant, function)."""

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items wait in their flow, first in first out; flows take turns."""

    def __init__(self) -> None:
        self._flows: dict[Flow, deque[T]] = {}  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._flows)

    def put(self, flow: Flow, item: T) -> None:
        """Add an item at the end of its flow; a flow that was empty gets the last turn."""
        self._flows.setdefault(flow, deque()).append(item)

    def remove(self, flow: Flow, item: T) -> bool:
        """Take an item out, wherever it waits; False where it does not wait any more."""
        items = self._flows.get(flow)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._flows[flow]
        return True

    def take(self, may_start: Callable[[Flow], bool]) -> tuple[Flow, T] | None:
        """The first flow in turn that may start one, and its first item; that flow then has the last turn."""
        for flow, items in self._flows.items():
            if may_start(flow):
                del self._flows[flow]
                item = items.popleft()
                if items:
                    self._flows[flow] = items
                return flow, item
        return None

    def clear(self) -> list[T]:
        """Take out everything that waits."""
        items = [item for flow in self._flows.values() for item in flow]
        self._flows.clear()
        return items
