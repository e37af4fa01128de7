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
from typing import Literal, TypeVar

import structlog

from faas.errors import ProtocolError, WorkerLost
from faas.pool.cgroups import Group
from faas.worker import wire

log = structlog.get_logger()

T = TypeVar("T")

OUTPUT_LIMIT_BYTES = 64 * 1024
"""Of what a worker prints in one lease reaches the log; the rest is read and dropped, so that printing blocks nothing."""
LINE_LIMIT_BYTES = 8 * 1024
CLOSE_GRACE_S = 2.0
EXIT_REPORT_S = 0.5
"""After a worker's connection has ended, its zygote says how it ended within so long, or nobody will."""
SPILL_SLACK_BYTES = 64 * 1024
IN_THREAD_BYTES = 2**20
"""Files above this are written and read off the event loop: 64 MiB take some 30 ms."""

OnOutput = Callable[["Worker", str, str], None]


class Process:
    """The host's view of a worker: `pid` is its own, `init` is the process whose death takes all that it started."""

    def __init__(self, pid: int, init: int, *, isolated: bool, group: Group | None) -> None:
        self.pid, self._isolated, self.group = pid, isolated, group
        self._descriptor = os.pidfd_open(init)
        self._clock = (~pid << 3) | 2  # the CPU clock of another process; source: clock_getcpuclockid(3)
        self._cpu_us = 0
        self._memory_peak_bytes = 0

    def kill(self) -> None:
        """End it and everything that it started, now. Without a namespace its init ends them one by one."""
        if self._descriptor >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL if self._isolated else signal.SIGTERM)

    def cpu_us(self) -> int:
        """CPU time of its whole life so far; the last known once it is gone."""
        with suppress(OSError):
            self._cpu_us = round(time.clock_gettime(self._clock) * 1e6)
        return self._cpu_us

    def memory_peak_bytes(self) -> int:
        """Peak resident size since its last attempt began; the last known once it is gone."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self._memory_peak_bytes = int(line.split()[1]) * 1024
        return self._memory_peak_bytes

    def ended(self, exited: wire.Exited) -> None:
        """What its zygote said of its end."""
        self._cpu_us, self._memory_peak_bytes = max(self._cpu_us, exited.cpu_us), max(self._memory_peak_bytes, exited.memory_peak_bytes)

    def close(self) -> None:
        """Its end is settled: give back what it held here."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self.group is not None:
                self.group.remove()


class Worker:
    """One worker process of a sandbox. `load` it once, then `invoke` it; both have no clock of their own."""

    def __init__(
        self, id: str, sandbox_id: str, directory: str, process: Process, transport: asyncio.Transport, on_output: OnOutput
    ) -> None:
        self.id, self.sandbox_id = id, sandbox_id
        self.version: str | None = None
        self.state: Literal["spare", "leased", "idle", "dead"] = "spare"
        self.function = ""  # for whoever reads its output
        self.idle_since_monotonic = time.monotonic()
        self.on_lost: Callable[[Worker], None] | None = None
        self._directory, self._process, self._transport, self._on_output = directory, process, transport, on_output
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[wire.SandboxMessage] | None = None
        self._sent = 0
        self._result_limit_bytes = 0
        self._failure: Exception | None = None
        self._exited: wire.Exited | None = None
        self._report_timer: asyncio.TimerHandle | None = None
        self._printed_bytes = 0
        self._dropped_bytes = 0

    # ------------------------------------------------------------ the two calls

    async def load(self, message: wire.Load) -> wire.Loaded | wire.LoadFailed:
        """Make it the worker of a function version. Raises WorkerLost, ProtocolError."""
        self._result_limit_bytes = message.result_limit_bytes
        self.function = message.function
        answer = await self._call(message, sum(len(file.data) for file in message.files))
        if isinstance(answer, wire.Loaded):
            self.version = message.version
            return answer
        if isinstance(answer, wire.LoadFailed):
            return answer
        raise self._break(f"answered a load with {type(answer).__name__}")

    async def invoke(self, message: wire.Invoke) -> wire.Result | wire.Failed:
        """Run the handler once. Raises WorkerLost, ProtocolError."""
        answer = await self._call(message, len(message.data))
        if isinstance(answer, wire.Result | wire.Failed):
            return answer
        raise self._break(f"answered an invocation with {type(answer).__name__}")

    async def _call(self, message: wire.Load | wire.Invoke, size_bytes: int) -> wire.SandboxMessage:
        if self._failure is not None:
            raise self._failure
        if self._answer is not None:
            raise ProtocolError(f"worker {self.id} is asked a second thing before it answered the first")
        self._sent += 1
        name = f"{self.id}-h{self._sent}"
        answer = self._answer = self._loop.create_future()
        try:
            if size_bytes > IN_THREAD_BYTES:
                frame = await asyncio.to_thread(wire.encode, message, self._directory, name)
            else:
                frame = wire.encode(message, self._directory, name)
            self._transport.write(frame)
            said: wire.SandboxMessage = await answer
            return said
        finally:
            self._answer = None

    # ------------------------------------------------------------ what comes in

    def receive(self, message: wire.SandboxMessage) -> None:
        """An answer from its socket; anything else ends it."""
        if isinstance(message, wire.Spilled):
            self._read_spilled(message)
        elif (
            self._answer is not None
            and not self._answer.done()
            and isinstance(message, wire.Loaded | wire.LoadFailed | wire.Result | wire.Failed)
        ):
            self._answer.set_result(message)
        else:
            self._break(f"sent {type(message).__name__} that nobody asked for")

    def _read_spilled(self, message: wire.Spilled) -> None:
        limit_bytes = self._result_limit_bytes + SPILL_SLACK_BYTES
        if message.size <= IN_THREAD_BYTES:
            self._read_now(message, limit_bytes)
            return
        reading = self._loop.run_in_executor(None, _read_spilled, message, self._directory, limit_bytes)
        reading.add_done_callback(lambda done: self._take_read(done.result()))

    def _read_now(self, message: wire.Spilled, limit_bytes: int) -> None:
        self._take_read(_read_spilled(message, self._directory, limit_bytes))

    def _take_read(self, read: wire.SandboxMessage | wire.WireError) -> None:
        if isinstance(read, wire.WireError | wire.Spilled):
            self._break(str(read))
        elif self.state != "dead":
            self.receive(read)

    def _break(self, problem: str) -> ProtocolError:
        """The peer does not speak the protocol: whatever it says from now on is not believed."""
        error = ProtocolError(f"worker {self.id} {problem}")
        self._fail(error)
        self.kill()
        return error

    def break_off(self, problem: str) -> None:
        """Its socket brought something that is no message."""
        self._break(problem)

    # ------------------------------------------------------------ the end

    def connection_lost(self) -> None:
        """Its socket has closed: it is dead, or as good as."""
        if self.state == "dead" and self._report_timer is not None:
            return
        self.kill()
        self._report_timer = self._loop.call_later(EXIT_REPORT_S, self._settle)
        if self._exited is not None:
            self._settle()

    def exited(self, message: wire.Exited) -> None:
        """Its zygote says how it ended; that may come before or after the end of the socket."""
        self._exited = message
        self._process.ended(message)
        if self._report_timer is not None:
            self._settle()

    def _settle(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
        oom = self._process.group is not None and self._process.group.oom_kills() > 0
        self._fail(WorkerLost(self.id, _in_words(self._exited, oom=oom), oom=oom))
        self.memory_peak_bytes()
        self._process.close()
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(self)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._failure)

    # ------------------------------------------------------------ state

    def lease(self) -> None:
        """It belongs to one attempt from now on; what that may print is counted anew."""
        if self.state != "dead":
            self.state = "leased"
        if self._dropped_bytes:
            log.warning("worker.output_cut", function=self.function, worker=self.id, dropped_bytes=self._dropped_bytes)
        self._printed_bytes = self._dropped_bytes = 0

    def give_back(self) -> bool:
        """Idle again after a clean end; False where it is dead, whatever its attempt said."""
        if self.state != "leased" or self._failure is not None or self.version is None:
            return False
        self.state = "idle"
        self.idle_since_monotonic = time.monotonic()
        return True

    def limit(self, *, memory_bytes: int, cpus: float, pids: int) -> None:
        """Put a function's limits on it, as far as this machine can enforce them."""
        group = self._process.group
        if group is not None:
            try:
                group.limit(memory_bytes=memory_bytes, cpus=cpus, pids=pids)
            except OSError as error:
                log.warning("cgroup.failed", worker=self.id, error=str(error))

    def cpu_us(self) -> int:
        return self._process.cpu_us()

    def memory_peak_bytes(self) -> int:
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

    def kill(self) -> None:
        """SIGKILL it and everything that it started, now. Returns at once; may be called again."""
        self.state = "dead"
        self._process.kill()

    # ------------------------------------------------------------ output

    def printed(self, stream: str, line: bytes) -> None:
        """One line of its output; beyond OUTPUT_LIMIT_BYTES of a lease it is counted and dropped."""
        if self._printed_bytes + len(line) > OUTPUT_LIMIT_BYTES:
            if not self._dropped_bytes:
                self._on_output(self, stream, f"[more than {OUTPUT_LIMIT_BYTES} bytes in one attempt: the rest is dropped]")
            self._dropped_bytes += len(line)
            return
        self._printed_bytes += len(line)
        self._on_output(self, stream, line.decode("utf-8", "replace"))


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
