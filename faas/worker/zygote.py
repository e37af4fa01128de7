"""Templates, zygotes and inits: the single-threaded processes that fork others, and take them along when they end.

boot ── template ── zygote of a sandbox ── init of a worker ── worker
Template, zygote and init are pid 1 of a PID namespace of their own where that is permitted, so that the death of one ends
everything below it, double forks and new sessions included. The worker is not pid 1: signals that it sends itself act as
in any process. None of them holds an event loop, runs user code before the last fork, or touches CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from faas.worker import wire
from faas.worker.serve import Peer, serve

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_REPORT = struct.Struct("=iqq32s")  # exit code or -signal, CPU in us, peak memory in bytes, worker; below PIPE_BUF, so written whole
_libc = ctypes.CDLL(None, use_errno=True)


class Boot(Struct, frozen=True, kw_only=True):
    """What a template is started with: argv[1], as JSON."""

    directory: str
    id: str
    preload: tuple[str, ...] = ()
    warmup: str = ""
    isolate: bool = True  # in PID namespaces, where they are permitted


def main() -> None:
    """The boot process: makes the template, waits for it, and ends as it did."""
    boot = msgspec.json.decode(sys.argv[1], type=Boot)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a handler that aborts would leave its memory on the disk
    isolated = boot.isolate and _new_pid_namespace(first=True)
    if not isolated:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    template = os.fork()
    if template:
        code = _wait(template)
        if not isolated:
            _end_descendants()
        os._exit(code)
    _die_with_parent(signal.SIGKILL)
    _guarded(lambda: _template(boot, isolated))


# ---------------------------------------------------------------- template and zygote


def _template(boot: Boot, isolated: bool) -> None:
    began = time.monotonic()
    for module in boot.preload:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that holds an object's header
    peer = _connect(boot.directory)
    problem = _why_not_fork()
    hello = wire.Hello(
        role="template",
        id=boot.id,
        python=".".join(map(str, sys.version_info[:3])),
        threads=len(os.listdir("/proc/self/task")),
        isolated=isolated,
        preload_us=round((time.monotonic() - began) * 1e6),
    )
    Peer(peer, boot.directory, boot.id).send(hello)
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if isolated else -1
    _Forker(peer, boot, namespace=own_namespace, problem=problem).run()


class _Forker:
    """The loop of a template (forks zygotes) and of a zygote (forks workers): the node's word, or a child's end."""

    def __init__(self, connection: socket.socket, boot: Boot, *, namespace: int, problem: str = "") -> None:
        self._connection, self._boot, self._namespace, self._problem = connection, boot, namespace, problem
        self._peer = Peer(connection, boot.directory, boot.id)
        self._reader = wire.FrameReader()
        self._children: dict[int, str] = {}  # pid of an init or a zygote -> its id
        self._told: set[str] = set()
        self._reports, self._report_to = os.pipe()
        os.set_blocking(self._reports, False)
        self._wakeup, self._woken = os.pipe()
        for descriptor in (self._wakeup, self._woken):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._woken)

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (self._connection.fileno(), self._wakeup):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if self._connection.fileno() in ready:
                data = self._connection.recv(65536)
                if not data:
                    return
                for body in self._reader.feed(data):
                    self._obey(wire.decode_host(body))

    def _obey(self, message: wire.HostMessage) -> None:
        match message:
            case wire.Spawn(sandbox=name, directory=directory):
                self._fork(name, lambda: _zygote(Boot(directory=directory, id=name, warmup=self._boot.warmup), self._namespace >= 0))
            case wire.Fork(worker=name):
                self._fork(name, lambda: _init(self._boot, name, isolated=self._namespace >= 0, report_to=self._report_to))
            case wire.Close():
                os._exit(0)
            case _:
                raise wire.WireError(f"{type(message).__name__} is not for a zygote")

    def _fork(self, name: str, child: Callable[[], None]) -> None:
        problem = self._problem or _why_not_fork()
        if problem:
            self._peer.send(wire.Broken(id=name, detail=problem))
            return
        if self._namespace >= 0 and not _new_pid_namespace(first=False):
            self._peer.send(wire.Broken(id=name, detail=f"no PID namespace: {os.strerror(ctypes.get_errno())}"))
            return
        pid = os.fork()
        if pid == 0:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._connection.close()
            for descriptor in (self._wakeup, self._woken, self._reports, self._namespace):
                if descriptor >= 0:
                    os.close(descriptor)
            _guarded(child)
        if self._namespace >= 0:
            _libc.setns(self._namespace, _CLONE_NEWPID)  # back, so that the next child gets a namespace of its own again
        self._children[pid] = name

    def _reap(self) -> None:
        """Say which workers have ended, and how: their init reports that, unless it was killed itself."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            self._pass_on_reports()
            if pid == 0:
                return
            name = self._children.pop(pid, "")
            if name and name not in self._told:
                cpu_us = round((used.ru_utime + used.ru_stime) * 1e6)
                self._peer.send(
                    wire.Exited(worker=name, code=os.waitstatus_to_exitcode(status), cpu_us=cpu_us, memory_peak_bytes=used.ru_maxrss * 1024)
                )
            self._told.discard(name)

    def _pass_on_reports(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while report := os.read(self._reports, _REPORT.size):
                code, cpu_us, memory_bytes, packed = _REPORT.unpack(report)
                name = packed.rstrip(b"\0").decode()
                self._told.add(name)
                self._peer.send(wire.Exited(worker=name, code=code, cpu_us=cpu_us, memory_peak_bytes=memory_bytes))


def _zygote(boot: Boot, isolated: bool) -> None:
    os.setpgid(0, 0)
    if not isolated:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    connection = _connect(boot.directory)
    Peer(connection, boot.directory, boot.id).send(wire.Hello(role="zygote", id=boot.id, isolated=isolated))
    namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if isolated else -1
    _Forker(connection, boot, namespace=namespace).run()


def _why_not_fork() -> str:
    """A child of a process with threads inherits their locks and not the threads; one with a CUDA context inherits nothing that works."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the zygote has {threads} threads; a module that it preloads starts some: remove it from `preload`"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the zygote has a CUDA context, which does not survive a fork; a module that it preloads makes it: remove it from `preload`"
    return ""


# ---------------------------------------------------------------- init and worker


def _init(boot: Boot, worker: str, *, isolated: bool, report_to: int) -> None:
    """Hold the worker's output and its descendants, wait for it, say how it ended; what it left behind ends with this process."""
    os.setpgid(0, 0)
    if not isolated:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # to sweep, since no namespace will
    for role, descriptor in (("stdout", 1), ("stderr", 2)):
        connection = _connect(boot.directory)
        Peer(connection, boot.directory, worker).send(wire.Hello(role=role, id=worker))
        os.dup2(connection.fileno(), descriptor)
        connection.close()
    child = os.fork()
    if child == 0:
        os.close(report_to)
        _die_with_parent(signal.SIGKILL)
        _guarded(lambda: _worker(boot, worker))
    if not isolated:
        signal.signal(signal.SIGTERM, lambda number, frame: _sweep_and_exit())
    while True:
        pid, status, used = os.wait4(-1, 0)
        if pid == child:
            break
    report = _REPORT.pack(
        os.waitstatus_to_exitcode(status), round((used.ru_utime + used.ru_stime) * 1e6), used.ru_maxrss * 1024, worker.encode()
    )
    os.write(report_to, report)
    if not isolated:
        _sweep_and_exit()


def _sweep_and_exit() -> None:
    _end_descendants()
    os._exit(0)


def _end_descendants() -> None:
    """Without a namespace: end every descendant, those that a dying one hands up included, until there is none."""
    while True:
        with open("/proc/thread-self/children") as children:
            for pid in children.read().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _worker(boot: Boot, worker: str) -> None:
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # else all workers draw the same numbers; `random` does it by itself
    for name, descriptor in (("stdout", 1), ("stderr", 2)):  # made anew: those of the template took what it wrote to for a file
        stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    if boot.warmup:
        exec(boot.warmup, {name: module for name, module in sys.modules.items() if "." not in name})
    connection = _connect(boot.directory)
    peer = Peer(connection, boot.directory, worker)
    peer.send(wire.Hello(role="worker", id=worker))
    serve(peer, boot.directory)


# ---------------------------------------------------------------- shared


def _connect(directory: str) -> socket.socket:
    """Connect to the socket in a directory, whose path may be longer than an address holds (108 bytes): through its descriptor."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{wire.SOCKET_NAME}")
    finally:
        os.close(folder)
    return connection


def _new_pid_namespace(*, first: bool) -> bool:
    """Give the next child a PID namespace; as an ordinary user in a user namespace of its own, which the first call makes. Source: unshare(2)."""
    if _libc.unshare(_CLONE_NEWPID) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if not first or _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        return False
    for file, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(line)
    return True


def _die_with_parent(number: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _wait(pid: int) -> int:
    while True:
        ended, status = os.wait()  # of whoever it is: without namespaces the orphans of sandboxes come here too
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _guarded(body: Callable[[], None]) -> None:
    """Run the whole life of a forked process; nothing of its parent's stack runs after it."""
    code = 1
    try:
        body()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # the process ends here, and says why on its way
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
