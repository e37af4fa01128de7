"""What is heard of an invocation for whoever follows it: queues that are bounded, and the last items of a durable one for a reader that comes back. Knows no HTTP.

Items of a durable invocation are stored nowhere: a tape holds the last of them while somebody follows, and a little longer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from faas.bus.connection import Bus, Message, Subscription
from faas.errors import FaasError

BEHIND_BYTES = 4 * 2**20
"""Said and not yet read by one reader; beyond, it is cut off: the bus waits for nobody."""
MESSAGE_BYTES = 256
"""Of each message that waits, beside its body."""
TAPE_BYTES = 2**20
TAPES = 256
LINGER_S = 30.0
"""After its last reader has gone: a browser comes back after some three seconds."""


@dataclass(slots=True)
class Room:
    """What all readers and tapes of a gateway hold together, and may."""

    limit_bytes: int = 256 * 2**20
    used_bytes: int = 0

    @property
    def full(self) -> bool:
        return self.used_bytes > self.limit_bytes


class SlowReader(FaasError):
    """Whoever follows an invocation reads more slowly than it speaks."""

    code = "slow_reader"


class Heard:
    """Messages for one reader, in the order in which they came. None: look again, something may have come that nobody heard.

    `cut` ends the reader's connection at once where it is too far behind: it may be stuck in a write for a while.
    """

    def __init__(self, cut: Callable[[], None], room: Room) -> None:
        self._cut, self._room = cut, room
        self._behind = False
        self._messages: deque[Message | None] = deque()
        self._bytes = 0
        self._come = asyncio.Event()

    def put(self, message: Message | None) -> None:
        if self._behind:
            return
        self._hold(_size(message))
        self._messages.append(message)
        self._come.set()
        if self._bytes > BEHIND_BYTES or self._room.full:
            self._behind = True
            self._cut()

    def wake(self) -> None:
        """Have the reader look again."""
        self.put(None)

    async def next(self, *, wait_s: float | None = None) -> Message | None:
        """The next message; None where `wait_s` have passed, too. Raises SlowReader."""
        if not self._messages:
            self._come.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._come.wait()
            except TimeoutError:
                return None
        if self._behind:
            raise SlowReader("the reader is too far behind; it may come back with Last-Event-ID")
        message = self._messages.popleft()
        self._hold(-_size(message))
        return message

    def close(self) -> None:
        """The reader is gone."""
        self._behind = True
        self._messages.clear()
        self._hold(-self._bytes)

    def _hold(self, size: int) -> None:
        self._bytes += size
        self._room.used_bytes += size


def _size(message: Message | None) -> int:
    return MESSAGE_BYTES + (len(message.data) if message is not None else 0)


@dataclass(slots=True, eq=False)
class _Tape:
    """The last items of one invocation, and who reads them as they come."""

    room: Room
    messages: deque[Message] = field(default_factory=deque)
    size: int = 0
    readers: list[Heard] = field(default_factory=list)
    subscription: Subscription | None = None
    ending: asyncio.TimerHandle | None = None

    def take(self, message: Message) -> None:
        self.messages.append(message)
        self._hold(_size(message))
        while self.messages and (self.size > TAPE_BYTES or self.room.full):
            self._hold(-_size(self.messages.popleft()))
        for reader in self.readers:
            reader.put(message)

    def erase(self) -> None:
        """It is kept no more."""
        self.messages.clear()
        self._hold(-self.size)

    def _hold(self, size: int) -> None:
        self.size += size
        self.room.used_bytes += size


class Tapes:
    """By subject. `group` is where subscriptions end; `room` is for all readers, too."""

    def __init__(self, bus: Bus, *, group: asyncio.TaskGroup) -> None:
        self._bus, self._group, self.room = bus, group, Room()
        self._tapes: dict[str, _Tape] = {}

    @asynccontextmanager
    async def reading(self, subject: str, heard: Heard) -> AsyncIterator[None]:
        """What was heard on a subject lately goes to `heard`, and then what comes."""
        tape = self._tapes.get(subject)
        if tape is None:
            tape = self._tapes[subject] = _Tape(self.room)
            tape.subscription = await self._bus.subscribe(subject, tape.take)
        if tape.ending is not None:
            tape.ending.cancel()
            tape.ending = None
        for message in tape.messages:
            heard.put(message)
        tape.readers.append(heard)
        try:
            yield
        finally:
            tape.readers.remove(heard)
            if not tape.readers:
                linger_s = LINGER_S if len(self._tapes) <= TAPES else 0.0
                tape.ending = asyncio.get_running_loop().call_later(linger_s, self._end, subject, tape)

    def _end(self, subject: str, tape: _Tape) -> None:
        if self._tapes.get(subject) is tape and not tape.readers:
            del self._tapes[subject]
            tape.erase()
            if tape.subscription is not None:
                self._group.create_task(tape.subscription.unsubscribe())

    def close(self) -> None:
        """The node stops."""
        for subject, tape in list(self._tapes.items()):
            if tape.ending is not None:
                tape.ending.cancel()
            self._end(subject, tape)
