"""The node's end of a worker: its socket, its state, its process. Knows the wire, and no pool, function or event.

spare -> leased <-> idle -> dead. A worker that was killed, or whose connection ended, is dead for good: nothing leads back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from faas.errors import ProtocolError, WorkerLost
from faas.pool.cgroups import Group
from faas.pool.grants import Granted, hidden
from faas.pool.output import NOBODY, Line, Output, Speaker
from faas.pool.shelves import Shelf
from faas.worker import wire

log = structlog.get_logger()

CLOSE_GRACE_S = 2.0
EXIT_REPORT_S = 0.5
"""Between the end of a worker's connection and its zygote's word how it ended, whichever comes first; then nobody will say."""
SPILL_SLACK_BYTES = 64 * 1024
IN_THREAD_BYTES = 2**20
"""Messages above this are written and read off the event loop: 64 MiB take some 30 ms."""

OnOutput = Callable[["Worker", Line], None]
OnSaid = Callable[[wire.Chunk | wire.Emit | wire.Metered], None]


class Process:
    """The node's view of a worker's processes: `pid` is its own, `init` (a pidfd, taken over) the one whose death takes all that it started."""

    def __init__(self, pid: int, init: int, *, isolated: bool, group: Group | None) -> None:
        self.pid, self.group = pid, group
        self._init, self._signal = init, end_signal(isolated=isolated)
        self._clock = (~pid << 3) | 2  # the CPU clock of another process; source: clock_getcpuclockid(3)
        self._cpu_us = 0
        self._memory_peak_bytes = 0

    def kill(self) -> None:
        """End it and everything that it started, now."""
        if self._init >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, self._signal)

    def interrupt(self) -> None:
        """SIGTERM to the worker alone."""
        if self._init >= 0:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def cpu_us(self) -> int:
        """CPU time of its whole life so far; the last known once it is gone."""
        if self._init >= 0:
            with suppress(OSError):
                self._cpu_us = round(time.clock_gettime(self._clock) * 1e6)
        return self._cpu_us

    def memory_peak_bytes(self) -> int:
        """Peak resident size since its last attempt began; the last known once it is gone."""
        if self._init >= 0:
            with suppress(OSError):
                for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self._memory_peak_bytes = int(line.split()[1]) * 1024
        return self._memory_peak_bytes

    def ended(self, exited: wire.Exited) -> None:
        """What its zygote said of its end."""
        self._cpu_us, self._memory_peak_bytes = max(self._cpu_us, exited.cpu_us), max(self._memory_peak_bytes, exited.memory_peak_bytes)

    def close(self) -> None:
        """Kill what may be left and forget it: its pids may be another's from now on."""
        self.kill()
        if self._init >= 0:
            os.close(self._init)
            self._init = -1
        if self.group is not None:
            self.group.discard()


class Worker:
    """One worker process of a sandbox. `load` it once, then `invoke` it; both have no clock of their own."""

    def __init__(self, id: str, sandbox_id: str, *, directory: str, process: Process, transport: asyncio.Transport, output: Output) -> None:
        self.id, self.sandbox_id = id, sandbox_id
        self.version: str | None = None
        self.secrets = ""  # the version of those that it holds, "" where it holds none
        self.shelf: Shelf | None = None  # where it may write them
        self.state: Literal["spare", "leased", "idle", "dead"] = "spare"
        self.idle_since_monotonic = time.monotonic()
        self.on_lost: Callable[[Worker], None] | None = None
        self.directory, self._process, self._transport, self._output = directory, process, transport, output
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[wire.SandboxMessage] | None = None
        self._on_said: OnSaid | None = None
        self._events = self._item_bytes = 0  # said in this attempt
        self._sent = 0
        self._reading = False  # an answer is being read from its file
        self._result_limit_bytes = 0
        self._failure: Exception | None = None
        self._exited: wire.Exited | None = None
        self._disconnected = False
        self._settling: asyncio.TimerHandle | None = None
        self._settled = False

    # ------------------------------------------------------------ the two calls

    async def load(self, message: wire.Load, *, timeout_s: float | None = None) -> wire.Loaded | wire.LoadFailed:
        """Make it the worker of a function version. Raises as `invoke` does."""
        self._result_limit_bytes = message.result_limit_bytes
        if self._output.speaker is NOBODY:
            self.speak_for(Speaker(message.tenant, message.function))
        answer = await self._call(message, sum(len(file.data) for file in message.files), timeout_s)
        if isinstance(answer, wire.Loaded):
            self.version = message.version
            return answer
        if isinstance(answer, wire.LoadFailed):
            return answer
        raise self._break(f"answered a load with {type(answer).__name__}")

    async def invoke(
        self, message: wire.Invoke, *, timeout_s: float | None = None, on_said: OnSaid | None = None
    ) -> wire.Result | wire.Failed:
        """Run the handler once; `on_said` gets what it says meanwhile.

        Raises WorkerLost, ProtocolError; TimeoutError after `timeout_s`, when it still runs and is the caller's to kill.
        """
        self._on_said, self._events, self._item_bytes = on_said, 0, 0
        try:
            answer = await self._call(message, len(message.data), timeout_s)
        finally:
            self._on_said = None  # it holds the event, which an idle worker would keep
        if isinstance(answer, wire.Result | wire.Failed):
            return answer
        raise self._break(f"answered an invocation with {type(answer).__name__}")

    def new_file(self) -> str:
        """The name of a file in its directory that can be made for it, as a `Spilled` frame or `Invoke.file` names it."""
        self._sent += 1
        return f"{wire.SPILL_PREFIX}{self.id}-h{self._sent}"

    def open_body(self, answer: wire.Result) -> int:
        """A descriptor of the file that holds a result, its name gone: the caller's to close. Raises ProtocolError."""
        try:
            return wire.open_spilled(wire.Spilled(file=answer.file, size=answer.size), self.directory, self._result_limit_bytes)
        except wire.WireError as error:
            raise self._break(f"sent a result that cannot be read: {error}") from error

    async def _call(self, message: wire.Load | wire.Invoke, size_bytes: int, timeout_s: float | None) -> wire.SandboxMessage:
        if self._failure is not None:
            raise self._failure
        if self._answer is not None:
            raise ProtocolError(f"worker {self.id} is asked a second thing before it answered the first")
        answer: asyncio.Future[wire.SandboxMessage] = self._loop.create_future()
        self._answer = answer
        # Not asyncio.timeout: it costs 2 us more, on the way of every attempt.
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _time_out, answer)
        try:
            try:
                frame = self._frame(message) if size_bytes <= IN_THREAD_BYTES else await asyncio.to_thread(self._frame, message)
            except OSError as error:
                self.kill()
                raise WorkerLost(self.id, f"could not be given its message: {error.strerror}") from error
            if self._failure is None:
                self._transport.write(frame)
            return await answer
        finally:
            if timer is not None:
                timer.cancel()
            self._answer = None

    def _frame(self, message: wire.Load | wire.Invoke) -> bytes:
        self._sent += 1
        if isinstance(message, wire.Load) and message.secrets and self.shelf is not None:
            message = msgspec.structs.replace(message, secrets_folder=self.shelf.make())
        return wire.encode(message, self.directory, f"{self.id}-h{self._sent}")

    # ------------------------------------------------------------ what comes in

    def received(self, message: wire.SandboxMessage) -> None:
        """A message from its socket: what it says, the answer that is owed, or the end of it."""
        if isinstance(message, wire.Log):  # at any time: a thread may log on after its attempt
            if not self._output.take(message):
                self._break(f"sent more than {wire.LOG_FRAMES} messages to the log")
        elif self._answer is None or self._answer.done() or self._reading:
            self._break(f"sent {type(message).__name__} that nobody asked for")
        elif isinstance(message, wire.Result | wire.Failed | wire.Loaded | wire.LoadFailed):
            self._answer.set_result(hidden(message, self._output.redactor))
        elif isinstance(message, wire.Chunk | wire.Emit | wire.Metered):
            self._hear(message)
        elif isinstance(message, wire.Spilled):
            self._read_spilled(message)
        else:
            self._break(f"sent {type(message).__name__}, which is no answer")

    def _hear(self, message: wire.Chunk | wire.Emit | wire.Metered) -> None:
        """What its own code refuses to say is refused here too, where somebody writes frames by hand: more than a stream holds would fill it."""
        if isinstance(message, wire.Emit):
            self._events += 1
        elif isinstance(message, wire.Chunk):
            self._item_bytes += len(message.data) + 1
        if self._events > wire.EVENTS:
            self._break(f"published more than {wire.EVENTS} events in one attempt")
        elif self._item_bytes > self._result_limit_bytes:
            self._break(f"sent items of more than {self._result_limit_bytes} bytes together")
        elif self._on_said is not None:
            self._on_said(message)

    def _read_spilled(self, message: wire.Spilled) -> None:
        limit_bytes = self._result_limit_bytes + SPILL_SLACK_BYTES
        if message.size <= IN_THREAD_BYTES:
            self._take(_read_spilled(message, self.directory, limit_bytes))
            return
        self._reading = True
        reading = self._loop.run_in_executor(None, _read_spilled, message, self.directory, limit_bytes)
        reading.add_done_callback(lambda done: None if done.cancelled() else self._take(done.result()))

    def _take(self, read: wire.SandboxMessage | wire.WireError) -> None:
        self._reading = False
        if self._failure is not None:
            return  # it died, or was given up, while its answer was read
        if isinstance(read, wire.WireError | wire.Spilled):
            self._break(f"sent what cannot be read: {read}")
        else:
            self.received(read)

    def broken(self, problem: str) -> None:
        """Its socket brought something that is no message."""
        self._break(f"sent {problem}")

    def _break(self, problem: str) -> ProtocolError:
        """The peer does not speak the protocol: whatever it says from now on is not believed."""
        error = ProtocolError(f"worker {self.id} {problem}")
        self._fail(error)
        self.kill()
        return error

    # ------------------------------------------------------------ the end

    def lost(self) -> None:
        """Its connection has ended: it is dead, or as good as."""
        self.state, self._disconnected = "dead", True
        self._settle_soon()

    def exited(self, message: wire.Exited | None) -> None:
        """How it ended, by its zygote's word, which may come before or after the end of the connection; None where none will come."""
        self.state, self._exited = "dead", message or wire.Exited(worker=self.id, code=-signal.SIGKILL, cpu_us=0, memory_peak_bytes=0)
        self._process.ended(self._exited)
        self._settle_soon()

    def _settle_soon(self) -> None:
        """Once both ends are known, for an answer may still be in the socket of a process that has ended; else when time is up."""
        if self._disconnected and self._exited is not None:
            self._settle()
        elif self._settling is None:
            self._settling = self._loop.call_later(EXIT_REPORT_S, self._settle)

    def _settle(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        if self._settled:
            return
        self._settled = True
        killed = self._exited is None or self._exited.code == -signal.SIGKILL
        oom = killed and self._process.group is not None and self._process.group.oom_kills() > 0
        self._process.close()
        if self.shelf is not None:
            self.shelf.remove()
        self._transport.abort()
        self._fail(WorkerLost(self.id, _in_words(self._exited, oom=oom), oom=oom))
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(self)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._failure)

    # ------------------------------------------------------------ state

    def pause(self) -> None:
        """Read no more of what it says; it waits when its socket is full."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def lease(self) -> None:
        """It belongs to one attempt from now on; what that may print is counted anew."""
        if self.state != "dead":
            self.state = "leased"
        self._output.renew()

    def speak_for(self, speaker: Speaker) -> None:
        """Whose words its output is from now on."""
        self._output.speaker = speaker

    def grant(self, granted: Granted) -> None:
        """What it is told in confidence as it loads: nothing that it says from now on shows it."""
        self.secrets, self._output.redactor = granted.version, granted.redactor

    def give_back(self) -> bool:
        """Idle again after a clean end; False where it is dead, whatever its attempt said."""
        if self.state != "leased" or self._failure is not None or self._answer is not None or self.version is None:
            return False
        self.state = "idle"
        self.idle_since_monotonic = time.monotonic()
        return True

    def limit(self, *, memory_bytes: int, cpus: float, pids: int) -> None:
        """Put a function's limits on it, as far as this machine can enforce them."""
        if self._process.group is not None:
            try:
                self._process.group.limit(memory_bytes=memory_bytes, cpus=cpus, pids=pids)
            except OSError as error:
                log.warning("cgroup.failed", worker=self.id, error=str(error))

    def cpu_us(self) -> int:
        """CPU time of its process so far, in microseconds; the last known once it is gone."""
        return self._process.cpu_us()

    def memory_peak_bytes(self) -> int:
        """Its peak resident size since its last attempt began; the last known once it is gone."""
        return self._process.memory_peak_bytes()

    @property
    def pid(self) -> int:
        """As this machine counts."""
        return self._process.pid

    def retire(self) -> None:
        """Let it run the handler's `close` and exit; killed where that takes longer than CLOSE_GRACE_S. Returns at once."""
        if self.state != "dead":
            self.state = "dead"
            self._transport.write(wire.encode(wire.Close()))
            self._loop.call_later(CLOSE_GRACE_S, self.kill)

    def interrupt(self) -> None:
        """Ask what it runs to stop: `ctx.cancelled`, or CancelledError in an async handler. Returns at once."""
        if self.state != "dead":
            self._process.interrupt()

    def kill(self) -> None:
        """SIGKILL it and everything that it started, now. Returns at once; may be called again."""
        self.state = "dead"
        self._process.kill()


def end_signal(*, isolated: bool) -> signal.Signals:
    """What ends an init with all below it: SIGKILL takes its namespace along; without one it must be able to sweep."""
    return signal.SIGKILL if isolated else signal.SIGTERM


def _read_spilled(message: wire.Spilled, directory: str, limit_bytes: int) -> wire.SandboxMessage | wire.WireError:
    try:
        return wire.decode_sandbox(wire.read_spilled(message, directory, limit_bytes))
    except wire.WireError as error:
        return error


def _in_words(exited: wire.Exited | None, *, oom: bool) -> str:
    if oom:
        return "was killed by its memory limit (limits.memory)"
    if exited is None:
        return "closed its connection"
    if exited.code >= 0:
        return f"exited with code {exited.code}"
    try:
        name = signal.Signals(-exited.code).name
    except ValueError:
        name = "?"
    return f"was killed by signal {-exited.code} ({name})"


def _time_out(answer: asyncio.Future[wire.SandboxMessage]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
