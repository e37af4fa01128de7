"""What workers print: cut into lines, bounded for each lease, and read on at a pace that holds nobody up. Knows no log and no function."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from faas.pool.listener import Caller

OUTPUT_LIMIT_BYTES = 64 * 1024
"""Of what a worker prints in one lease reaches the log; the rest is read and dropped."""
LINE_LIMIT_BYTES = 8 * 1024
LINES_PER_TURN = 100
"""Lines handed on before the event loop gets a turn: a line costs the log some 30 us."""
FLOOD_BYTES = 256 * 1024
FLOOD_PAUSE_S = 0.005
"""After each FLOOD_BYTES of what is dropped: a flood then costs the node little, and its worker its own time."""
EARLY_LINES = 40

Sink = Callable[[str, str], None]  # stream, line


class Output:
    """Both streams of one worker. Until `start` names a sink the last lines are kept: they say why a warm-up failed."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._early: deque[tuple[str, str]] = deque(maxlen=EARLY_LINES)
        self._left_bytes = OUTPUT_LIMIT_BYTES
        self._dropped_bytes = 0
        self.open = 0  # streams whose end has not come

    def start(self, sink: Sink) -> None:
        """What was printed so far, and all that comes, goes to the sink."""
        self._sink = sink
        while self._early:
            sink(*self._early.popleft())

    def renew(self) -> None:
        """A new lease: what it may print is counted anew."""
        self._left_bytes, self._dropped_bytes = OUTPUT_LIMIT_BYTES, 0

    def admit(self, data: bytes) -> bytes:
        """As much of it as the lease may still print."""
        admitted = data[: self._left_bytes]
        self._left_bytes -= len(admitted)
        self._dropped_bytes += len(data) - len(admitted)
        return admitted

    @property
    def is_flooded(self) -> bool:
        """Whether the lease has printed all that it may, and more."""
        return self._dropped_bytes > 0

    def emit(self, stream: str, line: bytes) -> None:
        """Hand on one line."""
        text = line.decode("utf-8", "replace")
        if self._sink is None:
            self._early.append((stream, text))
        else:
            self._sink(stream, text)

    @property
    def last_words(self) -> str:
        """What was printed before a sink was there."""
        return "\n".join(line for _, line in self._early)


class Stream(asyncio.Protocol):
    """One connection that carries text: reads it to its end, whatever becomes of the lines."""

    def __init__(self, caller: Caller, output: Output, on_end: Callable[[], None]) -> None:
        self._transport, self._output, self._name = caller.transport, output, caller.hello.role
        self._loop = asyncio.get_running_loop()
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._ended = False
        self._told = False  # that this lease's output is cut
        self._flood_bytes = 0
        self._paused = False
        self._on_end: Callable[[], None] | None = on_end
        output.open += 1

    def data_received(self, data: bytes) -> None:
        output = self._output
        self._told = self._told and output.is_flooded
        admitted = output.admit(data)
        *lines, rest = (self._rest + admitted).split(b"\n")
        for line in lines:
            self._cut(line)
        while len(rest) > LINE_LIMIT_BYTES:
            self._lines.append(rest[:LINE_LIMIT_BYTES])
            rest = rest[LINE_LIMIT_BYTES:]
        self._rest = rest
        self._flood_bytes += len(data) - len(admitted)
        if len(admitted) < len(data) and not self._told:
            self._told = True
            if rest:
                self._lines.append(rest)
                self._rest = b""
            self._lines.append(b"[more than %d bytes in one attempt: the rest is dropped]" % OUTPUT_LIMIT_BYTES)
        self._hand_on()

    def _cut(self, line: bytes) -> None:
        self._lines.extend(line[at : at + LINE_LIMIT_BYTES] for at in range(0, max(1, len(line)), LINE_LIMIT_BYTES))

    def _hand_on(self) -> None:
        for _ in range(min(LINES_PER_TURN, len(self._lines))):
            self._output.emit(self._name, self._lines.popleft())
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
            self._lines.append(self._rest)
        self._hand_on()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._output.open -= 1
            on_end()
