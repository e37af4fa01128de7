"""The process backend: templates, sandboxes and workers as forks, in PID namespaces where those are permitted.

Owns the processes and their sockets under STATE/run. Knows no function and no queue. One template for each profile
imports its `preload` once; every sandbox and every worker is a fork of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import msgspec
import structlog

import faas
from faas.errors import ColdStartFailed
from faas.model import Environment, RuntimeProfile
from faas.pool.cgroups import Cgroups
from faas.pool.worker import OnOutput, Process, Worker
from faas.processes import die_with_parent
from faas.worker import wire
from faas.worker.zygote import Boot

log = structlog.get_logger()

TEMPLATE_S = 120.0
"""A template imports torch in 1.3 to 6 s; one that takes longer than this does not come."""
FORK_S = 60.0
LAST_OUTPUT_BYTES = 2000
_PEER = struct.Struct("3i")


class ProcessBackend:
    """Starts sandboxes as forks of a template. An async context manager; leaving it ends every process that it started."""

    def __init__(self, state: Path, node: str, *, on_output: OnOutput) -> None:
        self._run, self._code, self._node = state / "run", state / "worker", node
        self.on_output = on_output
        self.cgroups = Cgroups()
        self.enforced: frozenset[str] = frozenset()
        self._templates: dict[str, _Template] = {}
        self._preparing: dict[str, asyncio.Lock] = {}
        self._names = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._sweep)
        self.cgroups = await asyncio.to_thread(Cgroups.open, self._node)
        self.enforced = self.cgroups.enforced
        self._code_path = await asyncio.to_thread(_worker_code, self._code)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for template in self._templates.values():
            await template.stop()
        await asyncio.to_thread(self._sweep)
        await asyncio.to_thread(self.cgroups.close)

    def _sweep(self) -> None:
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir(parents=True, exist_ok=True, mode=0o700)

    def name(self, kind: str) -> str:
        """A new name, short and unique on this node."""
        self._names += 1
        return f"{kind}{self._names}"

    def is_prepared(self, profile: RuntimeProfile) -> bool:
        template = self._templates.get(profile.name)
        return template is not None and template.alive

    async def prepare(self, profile: RuntimeProfile, environment: Environment) -> None:
        async with self._preparing.setdefault(profile.name, asyncio.Lock()):
            if self.is_prepared(profile):
                return
            template = _Template(self, profile, environment, self._run / self.name("t"))
            await template.start(self._code_path)
            self._templates[profile.name] = template

    async def start(self, profile: RuntimeProfile, environment: Environment) -> ProcessSandbox:
        if not self.is_prepared(profile):
            await self.prepare(profile, environment)
        return await self._templates[profile.name].spawn()


class _Listener:
    """The socket of one template or sandbox, in a directory of its own: 0700, and nobody else's."""

    def __init__(self, backend: ProcessBackend, id: str, directory: Path) -> None:
        self.backend, self.id, self.directory = backend, id, directory
        self.peer: asyncio.Transport | None = None  # the zygote
        self.alive = False
        self.broken: dict[str, asyncio.Future[object]] = {}  # id of what was asked for -> who waits for it
        self._server: asyncio.AbstractServer | None = None

    async def listen(self) -> None:
        self.directory.mkdir(mode=0o700)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            listening.bind(f"/proc/self/fd/{folder}/{wire.SOCKET_NAME}")  # the path itself may be longer than an address holds
        finally:
            os.close(folder)
        listening.setblocking(False)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), sock=listening)

    def send(self, message: wire.HostMessage) -> None:
        if self.peer is not None:
            self.peer.write(wire.encode(message))

    def expect(self, id: str) -> asyncio.Future[object]:
        """What the zygote was asked for; done when it says hello, or is broken, or the zygote ends."""
        waiting = self.broken[id] = asyncio.get_running_loop().create_future()
        return waiting

    def hello(self, connection: _Connection, message: wire.Hello, pid: int) -> None:
        """A first frame. Subclasses know the other roles."""
        if message.role in ("template", "zygote") and self.peer is None:
            self.peer, self.alive = connection.transport, True
            self._fulfil(self.id, message)
        else:
            connection.refuse(f"a second {message.role[:20]} said hello")

    def _fulfil(self, id: str, what: object) -> None:
        waiting = self.broken.pop(id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(what)

    def said(self, message: wire.SandboxMessage) -> None:
        """A later frame of the zygote."""
        if isinstance(message, wire.Broken):
            self._fulfil(message.id, message)

    def zygote_lost(self) -> None:
        self.alive = False
        for id in list(self.broken):
            self._fulfil(id, wire.Broken(id=id, detail="its zygote ended"))

    def close(self) -> None:
        self.alive = False
        if self._server is not None:
            self._server.close()
        if self.peer is not None:
            self.peer.close()


class _Template(_Listener):
    """The process that imported a profile's `preload`, and every sandbox forked from it."""

    def __init__(self, backend: ProcessBackend, profile: RuntimeProfile, environment: Environment, directory: Path) -> None:
        super().__init__(backend, directory.name, directory)
        self.profile, self._environment = profile, environment
        self.isolated = False
        self._process: asyncio.subprocess.Process | None = None
        self._sandboxes: list[ProcessSandbox] = []

    async def start(self, code: Path) -> None:
        """Raises ColdStartFailed with its last output."""
        began = time.monotonic()
        await self.listen()
        hello = self.expect(self.id)
        boot = Boot(directory=str(self.directory), id=self.id, preload=self.profile.preload, warmup=self.profile.warmup)
        program = f"import sys; sys.path.insert(0, {str(code)!r}); from faas.worker.zygote import main; main()"
        output = await asyncio.to_thread(open, self.directory / "output", "wb")
        with output:
            self._process = await asyncio.create_subprocess_exec(
                self._environment.python, "-c", program, msgspec.json.encode(boot).decode(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.directory, env=_clean_environment(self.directory),
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        said = await self._first_word(self._process, hello)
        if not isinstance(said, wire.Hello) or said.threads > 1:
            await self.stop()
            problem = (
                f"the preload leaves {said.threads} threads, so it cannot fork" if isinstance(said, wire.Hello) else self._last_output()
            )
            raise ColdStartFailed(f"template of {self.profile.name}", after_s=time.monotonic() - began, last_output=problem)
        self.isolated = said.isolated
        log.info(
            "template.ready", profile=self.profile.name, preload_ms=said.preload_us // 1000, python=said.python, isolated=said.isolated
        )

    async def _first_word(self, process: asyncio.subprocess.Process, hello: asyncio.Future[object]) -> object:
        """Its hello, or None where it ended or fell silent before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TEMPLATE_S), asyncio.TaskGroup() as group:
                ended = group.create_task(process.wait())
                await asyncio.wait((ended, hello), return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
        return hello.result() if hello.done() else None

    def _last_output(self) -> str:
        with suppress(OSError):
            return (self.directory / "output").read_text(errors="replace")[-LAST_OUTPUT_BYTES:].strip()
        return ""

    async def spawn(self) -> ProcessSandbox:
        """A new sandbox: a fork in a PID namespace of its own."""
        began = time.monotonic()
        id = self.backend.name("s")
        sandbox = ProcessSandbox(self.backend, self, id, self.backend._run / id)
        await sandbox.listen()
        hello, broken = sandbox.expect(id), self.expect(id)
        self.send(wire.Spawn(sandbox=id, directory=str(sandbox.directory)))
        await asyncio.wait([hello, broken], timeout=FORK_S, return_when=asyncio.FIRST_COMPLETED)
        self.broken.pop(id, None)
        if not hello.done():
            sandbox.kill()
            detail = broken.result() if broken.done() else None
            said = detail.detail if isinstance(detail, wire.Broken) else self._last_output()
            raise ColdStartFailed(f"sandbox of {self.profile.name}", after_s=time.monotonic() - began, last_output=said)
        self._sandboxes.append(sandbox)
        return sandbox

    def forget(self, sandbox: ProcessSandbox) -> None:
        if sandbox in self._sandboxes:
            self._sandboxes.remove(sandbox)

    async def stop(self) -> None:
        """End it and everything below it."""
        for sandbox in list(self._sandboxes):
            sandbox.kill()
        self.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class ProcessSandbox(_Listener):
    """One zygote and its workers."""

    def __init__(self, backend: ProcessBackend, template: _Template, id: str, directory: Path) -> None:
        super().__init__(backend, id, directory)
        self._template = template
        self.profile = template.profile.name
        self._inits: dict[str, tuple[int, list[_Connection]]] = {}  # worker -> pid of its init here, its output connections
        self._workers: dict[str, Worker] = {}
        self._pid = 0

    async def fork(self) -> Worker:
        began = time.monotonic()
        id = self.backend.name("w")
        hello = self.expect(id)
        self.send(wire.Fork(worker=id))
        try:
            async with asyncio.timeout(FORK_S):
                worker = await hello if self.alive else None
        except TimeoutError:
            worker = None
        finally:
            self.broken.pop(id, None)
        if isinstance(worker, Worker):
            return worker
        self._inits.pop(id, None)
        said = worker.detail if isinstance(worker, wire.Broken) else "nothing"
        raise ColdStartFailed(f"worker {id} of {self.profile}", after_s=time.monotonic() - began, last_output=said)

    def hello(self, connection: _Connection, message: wire.Hello, pid: int) -> None:
        if message.role == "zygote" and self.peer is None:
            self._pid = pid
            super().hello(connection, message, pid)
        elif message.role in ("stdout", "stderr") and message.id in self.broken:
            init, connections = self._inits.setdefault(message.id, (pid, []))
            if init == pid and len(connections) < 2:
                connection.output_of(message.role)
                connections.append(connection)
                return
            connection.refuse("output of another process")
        elif message.role == "worker" and message.id in self.broken and message.id in self._inits:
            self._adopt(connection, message.id, pid)
        else:
            connection.refuse(f"an unexpected {message.role[:20]} said hello")

    def _adopt(self, connection: _Connection, id: str, pid: int) -> None:
        init, outputs = self._inits.pop(id)
        group = self.backend.cgroups.group(id)
        try:
            process = Process(pid, init, isolated=self._template.isolated, group=group)
            if group is not None:
                group.add(pid)
        except OSError as error:
            connection.refuse(f"gone before it was known: {error}")
            return
        worker = Worker(id, self.id, str(self.directory), process, connection.transport, self.backend.on_output)
        connection.worker = worker
        for output in outputs:
            output.worker = worker
        self._workers[id] = worker
        self._fulfil(id, worker)

    def said(self, message: wire.SandboxMessage) -> None:
        if isinstance(message, wire.Exited):
            worker = self._workers.pop(message.worker, None)
            if worker is not None:
                worker.exited(message)
            said = self.backend_last_words(message)
            self._fulfil(message.worker, wire.Broken(id=message.worker, detail=said))
        else:
            super().said(message)

    def backend_last_words(self, message: wire.Exited) -> str:
        outputs = self._inits.pop(message.worker, (0, []))[1]
        lines = [line for output in outputs for line in output.early]
        return b"\n".join(lines).decode("utf-8", "replace")[-LAST_OUTPUT_BYTES:] or f"it exited with {message.code}"

    def zygote_lost(self) -> None:
        super().zygote_lost()
        self.kill()

    def kill(self) -> None:
        """End the zygote, and with it everything in the sandbox."""
        for worker in list(self._workers.values()):
            worker.kill()
        self._workers.clear()
        self.send(wire.Close())
        self.close()
        self._template.forget(self)
        asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(self.directory, ignore_errors=True))


class _Connection(asyncio.Protocol):
    """One connection of a sandbox: the first frame says whose it is; then frames, or output."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener
        self._reader = wire.FrameReader()
        self._greeted = False
        self._stream = ""  # stdout or stderr, where it is output
        self._line = bytearray()
        self.early: deque[bytes] = deque(maxlen=40)
        self.worker: Worker | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass of it

    def data_received(self, data: bytes) -> None:
        if self._stream:
            self._print(data)
            return
        try:
            for message in self._messages(data):
                if self.worker is not None:
                    self.worker.receive(message)
                elif self._greeted:
                    self._listener.said(message)
                elif isinstance(message, wire.Hello):
                    self._greeted = True
                    self._listener.hello(self, message, self._peer_pid())
                    if self._stream:
                        return
                else:
                    self.refuse("no hello")
        except wire.WireError as error:
            if self.worker is not None:
                self.worker.break_off(str(error))
            else:
                self.refuse(str(error))

    def _messages(self, data: bytes) -> Iterator[wire.SandboxMessage]:
        for body in self._reader.feed(data):
            yield wire.decode_sandbox(body)

    def _peer_pid(self) -> int:
        """The pid of who connected, as this process counts, whatever namespace it is in. Source: unix(7), SO_PEERCRED."""
        connection = self.transport.get_extra_info("socket")
        pid: int = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        return pid

    def refuse(self, problem: str) -> None:
        log.warning("sandbox.refused", sandbox=self._listener.id, problem=problem)
        self.transport.abort()

    def output_of(self, stream: str) -> None:
        """What comes from now on is text that a worker prints."""
        self._stream = stream
        rest = self._reader.rest()
        if rest:
            self._print(rest)

    def _print(self, data: bytes) -> None:
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._emit(line)
        while len(self._line) > 8 * 1024:
            self._emit(bytes(self._line[: 8 * 1024]))
            del self._line[: 8 * 1024]

    def _emit(self, line: bytes) -> None:
        if self.worker is None:
            self.early.append(line)
        else:
            self.worker.printed(self._stream, line)

    def connection_lost(self, error: Exception | None) -> None:
        if self._stream:
            if self._line:
                self._emit(bytes(self._line))
        elif self.worker is not None:
            self.worker.connection_lost()
        elif self.transport is self._listener.peer:
            self._listener.zygote_lost()


def _clean_environment(directory: Path) -> dict[str, str]:
    """What a sandbox sees of the machine: nothing of the node's own environment, and one thread for each numerical library."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **kept, "HOME": str(directory), "TMPDIR": str(directory), **one}


def _worker_code(folder: Path) -> Path:
    """A copy of what runs in sandboxes, by its content: they see nothing else of the node's packages."""
    package = Path(faas.__file__).parent
    files = [package / "__init__.py", package / "py.typed", *sorted((package / "worker").glob("*.py"))]
    digest = hashlib.sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()[:16]
    target = folder / digest
    if not target.is_dir():
        unfinished = folder / f"{digest}.{os.getpid()}"
        for file in files:
            copy = unfinished / "faas" / file.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        with suppress(OSError):
            unfinished.rename(target)
    return target.absolute()
