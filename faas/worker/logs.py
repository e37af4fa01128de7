"""What a function prints and logs, as messages to the node: cut into lines, with level and time, bounded for each attempt.

`print`, `logging` and structlog come here. What never passes through Python (C code, programs that a handler starts) writes
to the descriptors 1 and 2, which the worker's init holds, and so does a forked child: the socket is its parent's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from faas.worker import wire
from faas.worker.redaction import NOTHING

LINE_CHARACTERS = 8 * 1024
MESSAGE_CHARACTERS = 12 * 1024
"""Of one logged record: with four bytes a character it still fits into one frame."""

Where = Literal["stdout", "stderr", "log"]


class Log:
    """The one way of lines to the node. `send` may be called from any thread and anywhere; it says False where it cannot."""

    def __init__(self, send: Callable[[wire.Log], bool]) -> None:
        self._send = send
        self._left_bytes = wire.LOG_BYTES
        self.redactor = NOTHING  # what no line may show; cut lines after it, never before
        self._streams = (Stream("stdout", 1, self), Stream("stderr", 2, self))

    def install(self) -> None:
        """Take over `sys.stdout`, `sys.stderr` and the root logger."""
        sys.stdout, sys.stderr = self._streams
        root = logging.getLogger()
        root.addHandler(_Handler(self))
        if root.level == logging.WARNING:
            root.setLevel(logging.INFO)

    def adopt_structlog(self) -> None:
        """Have structlog log here too, with its levels, where the function imported it and configured nothing."""
        structlog: Any = sys.modules.get("structlog")
        if structlog is None or not hasattr(structlog, "is_configured") or structlog.is_configured():
            return
        plain = structlog.dev.ConsoleRenderer(colors=False, pad_event=0)
        processors = [structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, plain]
        structlog.configure(processors=processors, logger_factory=lambda *args: _Levels(self))

    def renew(self) -> None:
        """Another attempt: what it may print is counted anew."""
        self._left_bytes = wire.LOG_BYTES

    def finish(self) -> None:
        """Send what still waits: a line without its end."""
        for stream in self._streams:
            stream.end_line()

    def say(self, where: Where, text: str, *, level: str = "info", logger: str = "", at: float = 0.0) -> bool:
        """Pass on one line, or several. False where it cannot be done: in a forked child, or in the middle of another message."""
        text = wire.encodable(self.redactor.text(text)[:MESSAGE_CHARACTERS])
        if self._left_bytes < 0:
            return True
        # The one that crosses the limit goes out: the node counts alike, and says that it is cut. Not under a lock, which a signal handler
        # or a forked child would wait for in vain; what two threads miscount is little, and the node counts again.
        self._left_bytes -= max(len(text.encode()) + 1, wire.LOG_LINE_BYTES)
        return self._send(wire.Log(stream=where, level=level[:32], logger=logger[:200], text=text, at=at or time.time()))


class Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr`: whole lines go to the log, and everything where that cannot be done to the descriptor."""

    def __init__(self, name: Literal["stdout", "stderr"], descriptor: int, log: Log) -> None:
        self._name, self._descriptor, self._log = name, descriptor, log
        self._rest = ""
        self._buffer: io.BufferedWriter | None = None

    encoding = "utf-8"
    line_buffering = True
    errors = "backslashreplace"

    @property
    def buffer(self) -> io.BufferedWriter:
        """For bytes: straight to the descriptor."""
        if self._buffer is None or self._buffer.closed:  # what wraps it closes it when it is thrown away
            self._buffer = open(self._descriptor, "wb", closefd=False)  # noqa: SIM115  as long as the worker
        return self._buffer

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() takes text, not {type(text).__name__}")
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest
        for line in lines:
            self._say(line)
        while len(self._rest) > LINE_CHARACTERS:
            end = LINE_CHARACTERS
            if self._log.redactor:
                self._rest = self._log.redactor.text(self._rest)
                end -= self._log.redactor.begun(self._rest[:end].encode("utf-8", "surrogatepass"))
            self._say(self._rest[:end])
            self._rest = self._rest[end:]
        return len(text)

    def _say(self, line: str) -> None:
        line = self._log.redactor.text(line)
        for at in range(0, max(1, len(line)), LINE_CHARACTERS):
            part = line[at : at + LINE_CHARACTERS]
            if not self._log.say(self._name, part):
                with contextlib.suppress(OSError):
                    os.write(self._descriptor, f"{part}\n".encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """What was written as bytes; a line without its end waits for it, or for the end of the attempt."""
        if self._buffer is not None and not self._buffer.closed:
            self._buffer.flush()

    def reconfigure(self, **how: object) -> None:
        """Nothing is to be set: it is UTF-8, and goes line by line. For programs that make sure of it."""

    def end_line(self) -> None:
        """Pass on a line that has no end yet."""
        with contextlib.suppress(OSError, ValueError):  # the descriptor may be closed
            self.flush()
        if self._rest:
            rest, self._rest = self._rest, ""
            self._say(rest)


class _Handler(logging.Handler):
    """Records of `logging`, exceptions included."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # arguments that do not fit the message are the author's: logging says so on stderr
            self.handleError(record)
            return
        if not self._log.say("log", text, level=record.levelname.lower(), logger=record.name, at=record.created):
            with contextlib.suppress(OSError):
                os.write(2, f"{record.levelname} {text}\n".encode("utf-8", "backslashreplace"))


class _Levels:
    """What structlog takes for a logger: a method for each level."""

    def __init__(self, log: Log) -> None:
        for level in ("debug", "info", "warning", "error", "critical"):
            setattr(self, level, self._method(log, level))
        self.msg, self.warn = self.info, self.warning
        self.fatal = self.exception = self.failure = self.error
        self.err = self.error

    info: Callable[[str], None]
    warning: Callable[[str], None]
    error: Callable[[str], None]

    @staticmethod
    def _method(log: Log, level: str) -> Callable[[str], None]:
        def say(message: str) -> None:
            log.say("log", str(message), level=level, logger="structlog")

        return say
