"""The invocations on this node that have not ended: one at a time of each, and what it takes to cancel one. Knows no bus."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from msgspec import Struct

from faas.invocation import Invocation

CANCELLED_LIMIT = 10_000
"""So many are remembered before those are forgotten whose events have expired; then twice as many as were left."""


class Held(Struct, frozen=True, kw_only=True):
    """An invocation that some node has and that has not ended. `durable`: its end will be stored."""

    durable: bool
    event_id: str
    version: str
    invocation: str = ""
    tenant: str = ""
    function: str = ""
    stage: str = ""  # as Invocation has it
    attempt: int = 0  # that it is at


@dataclass(slots=True, eq=False)
class _Unended:
    invocation: Invocation
    durable: bool
    reply_to: str = ""
    ended: asyncio.Event | None = None  # made by whoever waits for it


class Unended:
    """By invocation id; one for a node."""

    def __init__(self) -> None:
        self._here: dict[str, _Unended] = {}
        self._answering: dict[str, str] = {}  # where an answer goes -> the invocation
        self._cancelled: dict[str, float] = {}  # until when that matters, in seconds since the epoch
        self._limit = CANCELLED_LIMIT

    async def alone(self, invocation: Invocation) -> None:
        """Hold a durable invocation, one at a time of each, until `remove`: the same event may arrive twice, and the second must find what the first stored."""
        while (other := self._here.get(invocation.id)) is not None:
            if other.ended is None:
                other.ended = asyncio.Event()
            await other.ended.wait()
        self._here[invocation.id] = _Unended(invocation, durable=True)

    def add(self, invocation: Invocation, reply_to: str) -> None:
        """Hold one whose id is random, so that no other can be it, until `remove`. `reply_to` is where its answer goes, "" where nobody waits for it."""
        self._here[invocation.id] = _Unended(invocation, durable=False, reply_to=reply_to)
        if reply_to:
            self._answering[reply_to] = invocation.id

    def remove(self, invocation: Invocation) -> None:
        """It has ended."""
        here = self._here.pop(invocation.id)
        self._answering.pop(here.reply_to, None)
        if here.ended is not None:
            here.ended.set()

    def holds(self, invocation: str) -> Held | None:
        """What another node has to know of one that has not ended on this node."""
        here = self._here.get(invocation)
        if here is None:
            return None
        one = here.invocation
        return Held(
            durable=here.durable,
            event_id=one.event.id,
            version=one.function.version,
            invocation=one.id,
            tenant=one.function.spec.tenant,
            function=one.function.spec.name,
            stage=one.stage,
            attempt=one.attempts + 1,
        )

    def answering(self, reply_to: str) -> str:
        """The invocation whose answer goes there, "" where none of this node does."""
        return self._answering.get(reply_to, "")

    def gone(self, reply_to: str) -> None:
        """Nobody waits there any more: the invocation whose answer would go there ends as cancelled."""
        if (here := self._here.get(self._answering.get(reply_to, ""))) is not None:
            here.invocation.cancel()

    def find(self, invocation: str) -> Invocation | None:
        """What has not ended on this node, by its id."""
        here = self._here.get(invocation)
        return here.invocation if here is not None else None

    @property
    def invocations(self) -> list[Invocation]:
        """All that have not ended on this node."""
        return [here.invocation for here in self._here.values()]

    def cancel(self, invocation: str, *, until: float) -> None:
        """End it here, and start it no more until then; its outcome is stored already, where it has one."""
        if len(self._cancelled) >= self._limit:
            now = time.time()
            self._cancelled = {id: at for id, at in self._cancelled.items() if at > now}
            self._limit = max(CANCELLED_LIMIT, 2 * len(self._cancelled))  # else all would be looked through at each further one
        self._cancelled[invocation] = until
        if (here := self._here.get(invocation)) is not None:
            here.invocation.cancel()

    def is_cancelled(self, invocation: str) -> bool:
        """Whether somebody cancelled it, so that its outcome has to be looked for before it may start."""
        return invocation in self._cancelled
