"""What workers print and log: cut into lines, bounded for each lease, and read on at a pace that holds nobody up. Knows no log and no function."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from faas.pool.listener import Caller
from faas.worker import wire
from faas.worker.redaction import NOTHING

CUT = f"[more than {wire.LOG_BYTES} bytes in one attempt: the rest is dropped]"
LINE_LIMIT_BYTES = 8 * 1024
LINES_PER_TURN = 100
"""Lines handed on before the event loop gets a turn: a line costs the log some 30 us."""
FLOOD_BYTES = 256 * 1024
FLOOD_PAUSE_S = 0.005
"""After each FLOOD_BYTES of what is dropped: a flood then costs the node little, and its worker its own time."""
EARLY_LINES = 40


@dataclass(slots=True, frozen=True)
class Speaker:
    """Whose words a worker's output is: the attempt that holds it, or held it last; without `invocation_id` a load that no event waits for."""

    tenant: str
    function: str
    invocation_id: str = ""
    attempt: int = 0


NOBODY = Speaker("", "")


@dataclass(slots=True, frozen=True)
class Line:
    """One line that a worker printed or logged. `at` is seconds since the epoch; `fraction` is set of a progress."""

    stream: str  # stdout | stderr | log | progress
    text: str
    at: float
    speaker: Speaker  # when it arrived: it may be handed on when another attempt holds the worker
    level: str = "info"
    logger: str = ""
    fraction: float | None = None


Sink = Callable[[Line], None]


class Output:
    """All that one worker prints and logs. Until `start` names a sink the last lines are kept: they say why a warm-up failed."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._early: deque[Line] = deque(maxlen=EARLY_LINES)
        self._left_bytes = wire.LOG_BYTES
        self._frames = 0
        self.told = False  # that this lease's output is cut
        self.open = 0  # streams whose end has not come
        self.speaker = NOBODY
        self.redactor = NOTHING  # what no line may show; lines are cut after it, never before

    def start(self, sink: Sink) -> None:
        """What was printed so far, and all that comes, goes to the sink."""
        self._sink = sink
        while self._early:
            sink(self._early.popleft())

    def renew(self) -> None:
        """A new lease: what it may print is counted anew."""
        self._left_bytes, self._frames, self.told = wire.LOG_BYTES, 0, False

    def admit(self, data: bytes) -> bytes:
        """As much of it as the lease may still print."""
        admitted = data[: self._left_bytes]
        self._left_bytes -= len(admitted)
        return admitted

    def line(self, stream: str, text: bytes) -> Line:
        """What came over a descriptor now."""
        return Line(stream, text.decode("utf-8", "replace"), time.time(), self.speaker)

    def take(self, said: wire.Log) -> bool:
        """Hand on what came as a message, cut into lines. False where a lease has sent more of them than its worker's own code would."""
        self._frames += 1
        if self._frames > wire.LOG_FRAMES or len(said.text) > 2 * wire.LOG_BYTES:
            return False
        for text in self.redactor.text(said.text).split("\n"):
            self._left_bytes -= max(len(text.encode("utf-8", "replace")) + 1, wire.LOG_LINE_BYTES)
            if self._left_bytes >= 0:
                self.hand_on(Line(said.stream, text, said.at, self.speaker, level=said.level, logger=said.logger, fraction=said.fraction))
                continue
            self._left_bytes = 0
            if not self.told:
                self.told = True
                self.hand_on(Line(said.stream, CUT, time.time(), self.speaker, level="warning"))
        return True

    def hand_on(self, line: Line) -> None:
        """To the sink, or kept until there is one."""
        if self._sink is None:
            self._early.append(line)
        else:
            self._sink(line)

    @property
    def last_words(self) -> str:
        """What was printed before a sink was there."""
        return "\n".join(line.text for line in self._early)


class Stream(asyncio.Protocol):
    """One connection that carries text: reads it to its end, whatever becomes of the lines."""

    def __init__(self, caller: Caller, output: Output, on_end: Callable[[], None]) -> None:
        self._transport, self._output, self._name = caller.transport, output, caller.hello.role
        self._loop = asyncio.get_running_loop()
        self._lines: deque[Line] = deque()
        self._rest = b""
        self._ended = False
        self._flood_bytes = 0
        self._paused = False
        self._on_end: Callable[[], None] | None = on_end
        output.open += 1

    def data_received(self, data: bytes) -> None:
        output = self._output
        admitted = output.admit(data)
        *lines, rest = (self._rest + admitted).split(b"\n")
        for line in lines:
            self._cut(line)
        while len(rest) > LINE_LIMIT_BYTES:
            rest = output.redactor.data(rest)
            end = LINE_LIMIT_BYTES - output.redactor.begun(rest[:LINE_LIMIT_BYTES])
            self._cut(rest[:end])
            rest = rest[end:]
        self._rest = rest
        self._flood_bytes += len(data) - len(admitted)
        if len(admitted) < len(data) and not output.told:
            output.told = True
            if rest:
                rest = output.redactor.data(rest)
                self._cut(rest[: len(rest) - output.redactor.begun(rest)])
            self._rest = b""
            self._cut(CUT.encode())
        self._hand_on()

    def _cut(self, line: bytes) -> None:
        line = self._output.redactor.data(line)
        for at in range(0, max(1, len(line)), LINE_LIMIT_BYTES):
            self._lines.append(self._output.line(self._name, line[at : at + LINE_LIMIT_BYTES]))

    def _hand_on(self) -> None:
        for _ in range(min(LINES_PER_TURN, len(self._lines))):
            self._output.hand_on(self._lines.popleft())
        if self._lines:
            self._pause()
            self._loop.call_soon(self._hand_on)
        elif self._ended:
            self._end()
        elif self._flood_bytes >= FLOOD_BYTES:
            self._flood_bytes = 0
            self._pause()
            self._loop.call_later(FLOOD_PAUSE_S, self._hand_on)
        elif self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        if self._rest:
            self._cut(self._rest)
        self._hand_on()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._output.open -= 1
            on_end()
