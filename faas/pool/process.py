"""The process backend: templates, sandboxes and workers as forks, in PID namespaces where those are permitted.

Owns the processes and their folders under STATE/run. Knows no function and no queue. One template for each profile
imports its `preload` once; every sandbox and every worker is a fork of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import msgspec
import structlog

from faas.errors import ColdStartFailed
from faas.model import Environment, RuntimeProfile
from faas.pool.cgroups import Cgroups
from faas.pool.forker import Forker
from faas.pool.listener import Caller, Frames
from faas.pool.output import Output, Stream
from faas.pool.shelves import Shelves
from faas.pool.worker import EXIT_REPORT_S, OnOutput, Process, Worker, end_signal
from faas.processes import die_with_parent, parent_of
from faas.worker import wire
from faas.worker.zygote import Boot

log = structlog.get_logger()

TEMPLATE_S = 120.0
"""A template imports torch in 1.3 to 6 s; one that takes longer than this does not come."""
FORK_S = 60.0
"""A first CUDA context takes seconds on a busy machine; a fork that takes longer than this does not come."""
LAST_OUTPUT_BYTES = 2000


class ProcessBackend:
    """Starts sandboxes as forks of a template. An async context manager; leaving it ends every process that it started.

    `isolate=False` does without PID namespaces where they would be permitted, as on a machine where they are not.
    """

    def __init__(self, state: Path, node: str, *, on_output: OnOutput, isolate: bool = True) -> None:
        self.run, self._code, self._node = (state / "run").absolute(), (state / "worker").absolute(), node
        self.on_output = on_output
        self.isolate = isolate
        self.cgroups = Cgroups()
        self.shelves = Shelves(state)
        self.enforced: frozenset[str] = frozenset()
        self._templates: dict[str, _Template] = {}
        self._preparing: dict[str, asyncio.Lock] = {}
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._sweep)
        self.cgroups = await asyncio.to_thread(Cgroups.open, self._node)
        self.enforced = self.cgroups.enforced
        self.code_path = await asyncio.to_thread(_worker_code, self._code)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for template in self._templates.values():
            await template.stop()
        await asyncio.to_thread(self._sweep)
        await asyncio.to_thread(self.cgroups.close)

    def _sweep(self) -> None:
        self.shelves.sweep()
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True, exist_ok=True, mode=0o700)

    def name(self, kind: str) -> str:
        """A new name, short and unique on this node."""
        return f"{kind}{next(self._numbers)}"

    def is_prepared(self, profile: RuntimeProfile) -> bool:
        template = self._templates.get(profile.name)
        return template is not None and template.alive

    async def prepare(self, profile: RuntimeProfile, environment: Environment) -> None:
        with _machine_refuses(f"template of {profile.name}"):
            await self._prepare(profile, environment)

    async def _prepare(self, profile: RuntimeProfile, environment: Environment) -> None:
        async with self._preparing.setdefault(profile.name, asyncio.Lock()):
            if self.is_prepared(profile):
                return
            dead = self._templates.pop(profile.name, None)
            if dead is not None:
                await dead.stop()
            template = _Template(self, profile, environment)
            try:
                await template.start()
            except BaseException:
                await template.stop()
                raise
            self._templates[profile.name] = template

    async def start(self, profile: RuntimeProfile, environment: Environment) -> ProcessSandbox:
        with _machine_refuses(f"sandbox of {profile.name}"):
            await self._prepare(profile, environment)
            return await self._templates[profile.name].spawn()
        raise AssertionError("unreachable")


@contextmanager
def _machine_refuses(what: str) -> Iterator[None]:
    """A full disk, no more descriptors, a folder that somebody removed: the start failed, and nothing else does."""
    began = time.monotonic()
    try:
        yield
    except OSError as error:
        raise ColdStartFailed(what, after_s=time.monotonic() - began, last_output=str(error)) from error


class _Template(Forker):
    """The process that imported a profile's `preload`, and every sandbox forked from it."""

    def __init__(self, backend: ProcessBackend, profile: RuntimeProfile, environment: Environment) -> None:
        id = backend.name("t")
        super().__init__(id, backend.run / id)
        self.backend = backend
        self.profile, self._environment = profile, environment
        self._process: asyncio.subprocess.Process | None = None
        self._sandboxes: set[ProcessSandbox] = set()

    async def start(self) -> None:
        """Raises ColdStartFailed with its last output."""
        began = time.monotonic()
        await self.listen()
        said: object = None
        problem = ""
        with self.asking(self.id) as hello:
            try:
                process = self._process = await self._boot()
                async with asyncio.timeout(TEMPLATE_S), asyncio.TaskGroup() as group:
                    ended = group.create_task(process.wait())
                    await asyncio.wait((cast("asyncio.Future[object]", ended), hello), return_when=asyncio.FIRST_COMPLETED)
                    ended.cancel()
                said = hello.result() if hello.done() else None
            except OSError as error:
                problem = f"{self._environment.python}: {error.strerror}"
            except TimeoutError:
                problem = "silence"
        if isinstance(said, wire.Hello) and said.threads <= 1:
            log.info("template.ready", profile=self.profile.name, preload_ms=said.preload_us // 1000, isolated=said.isolated)
            return
        if isinstance(said, wire.Hello):
            problem = f"its preload leaves {said.threads} threads running, and a process with threads cannot be forked"
        problem = problem or await asyncio.to_thread(self.last_output)
        raise ColdStartFailed(f"template of {self.profile.name}", after_s=time.monotonic() - began, last_output=problem)

    async def _boot(self) -> asyncio.subprocess.Process:
        boot = Boot(
            directory=str(self.directory),
            id=self.id,
            preload=self.profile.preload,
            warmup=self.profile.warmup,
            isolate=self.backend.isolate,
        )
        program = f"import sys; sys.path.insert(0, {str(self.backend.code_path)!r}); from faas.worker.zygote import main; main()"
        with open(self.directory / "output", "wb") as output:  # noqa: ASYNC230  an empty file
            return await asyncio.create_subprocess_exec(
                self._environment.python,
                *("-c", program, msgspec.json.encode(boot).decode()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=_clean_environment(self.directory),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def last_output(self) -> str:
        """The end of what it printed."""
        with suppress(OSError):
            return (self.directory / "output").read_text(errors="replace")[-LAST_OUTPUT_BYTES:].strip()
        return ""

    async def spawn(self) -> ProcessSandbox:
        """A new sandbox: a fork in a PID namespace of its own. Raises ColdStartFailed."""
        began = time.monotonic()
        sandbox = ProcessSandbox(self)
        self._sandboxes.add(sandbox)
        said: object = None
        try:
            await sandbox.listen()
            with sandbox.asking(sandbox.id) as hello, self.asking(sandbox.id) as refusal:
                self.send(wire.Spawn(sandbox=sandbox.id, directory=str(sandbox.directory)))
                if not self.alive:
                    self.lost()
                await asyncio.wait([hello, refusal], timeout=FORK_S, return_when=asyncio.FIRST_COMPLETED)
                said = next((answer.result() for answer in (hello, refusal) if answer.done()), None)
        finally:
            if not isinstance(said, wire.Hello):
                sandbox.kill()
        if isinstance(said, wire.Hello):
            return sandbox
        problem = said.detail if isinstance(said, wire.Broken) else await asyncio.to_thread(self.last_output)
        raise ColdStartFailed(f"sandbox of {self.profile.name}", after_s=time.monotonic() - began, last_output=problem)

    def forget(self, sandbox: ProcessSandbox) -> None:
        """It has ended: its folder goes, off the event loop."""
        if sandbox in self._sandboxes:
            self._sandboxes.discard(sandbox)
            self._loop.run_in_executor(None, partial(shutil.rmtree, sandbox.directory, ignore_errors=True))

    def kill(self) -> None:
        for sandbox in list(self._sandboxes):
            sandbox.kill()
        super().kill()

    async def stop(self) -> None:
        """End it and everything below it, and wait until that is so: the boot process outlives them all."""
        known = self.is_known
        self.kill()
        if self._process is not None:
            if not known:  # it has not said hello, so nobody but the boot process can be told
                with suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()


class _Birth:
    """A worker on its way: its init, its output, and how it ended where it came to nothing."""

    def __init__(self) -> None:
        self.init = -1
        self.init_pid = 0
        self.output = Output()
        self.streams: set[str] = set()
        self.exited: wire.Exited | None = None

    def take_init(self) -> int:
        """The pidfd of its init, which is the taker's from now on."""
        init, self.init = self.init, -1
        return init

    def abandon(self, *, isolated: bool) -> None:
        init = self.take_init()
        if init >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(init, end_signal(isolated=isolated))
            os.close(init)


class ProcessSandbox(Forker):
    """One zygote and its workers."""

    def __init__(self, template: _Template) -> None:
        id = template.backend.name("s")
        super().__init__(id, template.backend.run / id)
        self._backend = template.backend
        self._template = template
        self.profile = template.profile.name
        self._births: dict[str, _Birth] = {}
        self._workers: dict[str, Worker] = {}

    async def fork(self) -> Worker:
        began = time.monotonic()
        id = self._backend.name("w")
        birth = self._births[id] = _Birth()
        said: object = None
        try:
            with self.asking(id) as answer:
                self.send(wire.Fork(worker=id))
                if not self.alive:
                    self.lost()
                async with asyncio.timeout(FORK_S):
                    said = await answer
        except TimeoutError:
            said = wire.Broken(id=id, detail=birth.output.last_words or "silence")
        finally:
            del self._births[id]
            birth.abandon(isolated=self.isolated)
        if isinstance(said, Worker):
            return said
        problem = said.detail if isinstance(said, wire.Broken) else ""
        raise ColdStartFailed(f"worker {id} of {self.profile}", after_s=time.monotonic() - began, last_output=problem)

    def welcome(self, caller: Caller) -> asyncio.Protocol | None:
        """Only children of whoever was told to fork them: a function of another sandbox could reach this socket as the same user."""
        role, id = caller.hello.role, caller.hello.id
        birth = self._births.get(id)
        if role == "zygote":
            return super().welcome(caller) if parent_of(caller.pid) == self._template.pid else None
        if birth is None or birth.exited is not None:
            return None
        if role in ("stdout", "stderr"):
            return self._hear(caller, birth)
        if role == "worker" and birth.streams == {"stdout", "stderr"}:
            return self._adopt(caller, birth)
        return None

    def _hear(self, caller: Caller, birth: _Birth) -> Stream | None:
        """A stream of a worker on its way, held by its init."""
        if caller.hello.role in birth.streams or birth.init_pid not in (0, caller.pid) or parent_of(caller.pid) != self.pid:
            return None
        if birth.init < 0:
            try:
                birth.init, birth.init_pid = os.pidfd_open(caller.pid), caller.pid
            except ProcessLookupError:
                return None
        birth.streams.add(caller.hello.role)
        return Stream(caller, birth.output, partial(self._stillborn, caller.hello.id))

    def _adopt(self, caller: Caller, birth: _Birth) -> Frames | None:
        id = caller.hello.id
        if birth.init < 0 or parent_of(caller.pid) != birth.init_pid:
            return None
        group = self._backend.cgroups.group(id)
        process = Process(caller.pid, birth.take_init(), isolated=self.isolated, group=group)
        try:
            if group is not None:
                group.add(caller.pid)
        except OSError as error:
            log.warning("cgroup.failed", worker=id, error=str(error))
        worker = Worker(id, self.id, directory=str(self.directory), process=process, transport=caller.transport, output=birth.output)
        worker.shelf = self._backend.shelves.of(id)
        birth.output.start(partial(self._backend.on_output, worker))
        self._workers[id] = worker
        self.answer(id, worker)
        return Frames(worker)

    def received(self, message: wire.SandboxMessage) -> None:
        if not isinstance(message, wire.Exited):
            super().received(message)
        elif message.worker in self._workers:
            self._workers.pop(message.worker).exited(message)
        elif message.worker in self._births:
            self._births[message.worker].exited = message
            self._loop.call_later(EXIT_REPORT_S, self._stillborn, message.worker, True)
            self._stillborn(message.worker)

    def _stillborn(self, id: str, in_any_case: bool = False) -> None:
        """A worker ended before it was ready: say so, once all that it printed has been read."""
        birth = self._births.get(id)
        if birth is not None and birth.exited is not None and (in_any_case or not birth.output.open):
            detail = birth.output.last_words[-LAST_OUTPUT_BYTES:] or f"it exited with {birth.exited.code}"
            self.answer(id, wire.Broken(id=id, detail=detail))

    def kill(self) -> None:
        """End the zygote, and with it everything in the sandbox."""
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.kill()
        super().kill()
        for worker in workers.values():
            worker.exited(None)
        self._template.forget(self)


def _clean_environment(directory: Path) -> dict[str, str]:
    """What a sandbox sees of the machine: nothing of the node's own environment, and one thread for each numerical library."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # no device without a lease on it; nothing grants one yet
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **kept, "HOME": str(directory), "TMPDIR": str(directory), **one, **hidden}


def _worker_code(folder: Path) -> Path:
    """A copy of what runs in sandboxes, by its content: they see nothing else of the node's packages."""
    package = Path(__file__).parents[1]
    files = [package / "__init__.py", package / "py.typed", *sorted((package / "worker").glob("*.py"))]
    digest = hashlib.sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()[:16]
    target = folder / digest
    if not target.is_dir():
        unfinished = folder / f"{digest}.{os.getpid()}"
        for file in files:
            copy = unfinished / "faas" / file.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(unfinished)
    return target
