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
import mmap
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
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from faas.worker import wire
from faas.worker.serve import Peer, serve

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_ENDED = struct.Struct("=?i")  # whether the worker has ended, and its exit code or -signal
_libc = ctypes.CDLL(None, use_errno=True)


class Boot(Struct, frozen=True, kw_only=True):
    """What a template is started with: argv[1], as JSON."""

    directory: str
    id: str
    preload: tuple[str, ...] = ()
    warmup: str = ""
    isolate: bool = True  # in PID namespaces, where they are permitted


def main() -> None:
    """The boot process: makes the template, waits for it, and ends with it."""
    boot = msgspec.json.decode(sys.argv[1], type=Boot)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a handler that aborts would leave its memory on the disk
    isolated = boot.isolate and new_pid_namespace(first=True)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # again: a new user namespace clears it
    if not isolated:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    template = os.fork()
    if template == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # before anything is imported: that may take minutes
        _live(lambda: _template(boot, isolated))
    while os.wait()[0] != template:  # without namespaces the orphans of sandboxes come here too
        pass
    if not isolated:
        _end_descendants()


def _template(boot: Boot, isolated: bool) -> None:
    began = time.monotonic()
    for module in boot.preload:
        importlib.import_module(module)
    if boot.warmup and _stays_forkable(boot.warmup):
        _warm_up(boot.warmup)  # here too: what it touches is then shared by all spares (4 MB of torch), not private to each
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that holds an object's header
    preload_us = round((time.monotonic() - began) * 1e6)
    threads = len(os.listdir("/proc/self/task"))
    _Forker(boot, isolated, wire.Hello(role="template", id=boot.id, threads=threads, isolated=isolated, preload_us=preload_us)).run()


def _warm_up(statement: str) -> None:
    exec(statement, {name: module for name, module in sys.modules.items() if "." not in name})


def _stays_forkable(statement: str) -> bool:
    """Whether a process that has run it could still fork, tried in a child: a thread or a CUDA context cannot be taken back."""
    child = os.fork()
    if child == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _live(lambda: _try_warm_up(statement))
    return os.waitpid(child, 0)[1] == 0


def _try_warm_up(statement: str) -> None:
    _warm_up(statement)
    os._exit(1 if _why_not_fork() else 0)


def _zygote(boot: Boot, isolated: bool) -> None:
    _Forker(boot, isolated, wire.Hello(role="zygote", id=boot.id, isolated=isolated)).run()


class _Forker:
    """The loop of a template (forks zygotes) and of a zygote (forks workers): the node's word, or a child's end."""

    def __init__(self, boot: Boot, isolated: bool, hello: wire.Hello) -> None:
        if not isolated:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._boot = boot
        self._connection = _connect(boot.directory)
        self._peer = Peer(self._connection, boot.directory, boot.id)
        self._namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if isolated else -1
        self._children: dict[int, tuple[str, mmap.mmap]] = {}  # pid of a zygote or an init -> its id, and where an init says how it went
        self._wakeup, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._woken)
        self._peer.send(hello)

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
                messages = self._peer.receive_some()
                if messages is None:
                    return
                for message in messages:
                    self._obey(message)

    def _obey(self, message: wire.HostMessage) -> None:
        ended, isolated = mmap.mmap(-1, _ENDED.size), self._namespace >= 0
        if isinstance(message, wire.Spawn):
            sandbox = Boot(directory=message.directory, id=message.sandbox, warmup=self._boot.warmup)
            self._fork(message.sandbox, ended, lambda: _zygote(sandbox, isolated))
        elif isinstance(message, wire.Fork):
            self._fork(message.worker, ended, lambda: _init(self._boot, message.worker, isolated=isolated, ended=ended))
        else:
            raise wire.WireError(f"{type(message).__name__} is not for a zygote")

    def _fork(self, name: str, ended: mmap.mmap, child: Callable[[], None]) -> None:
        problem = _why_not_fork()
        if not problem and self._namespace >= 0 and not new_pid_namespace(first=False):
            problem = f"no PID namespace: {os.strerror(ctypes.get_errno())}"
        if problem:
            self._peer.send(wire.Broken(id=name, detail=problem))
            return
        pid = os.fork()
        if pid == 0:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._connection.close()
            for descriptor in (self._wakeup, self._woken, self._namespace):
                if descriptor >= 0:
                    os.close(descriptor)
            _live(child)
        if self._namespace >= 0:
            _libc.setns(self._namespace, _CLONE_NEWPID)  # back, so that the next child gets a namespace of its own again
        self._children[pid] = (name, ended)

    def _reap(self) -> None:
        """Say which workers have ended, and how: by the word of their init, unless it was killed itself."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._children:
                    name, ended = self._children.pop(pid)
                    said, code = _ENDED.unpack(ended[:])
                    code = code if said else os.waitstatus_to_exitcode(status)
                    cpu_us = round((used.ru_utime + used.ru_stime) * 1e6)
                    self._peer.send(wire.Exited(worker=name, code=code, cpu_us=cpu_us, memory_peak_bytes=used.ru_maxrss * 1024))


def _init(boot: Boot, worker: str, *, isolated: bool, ended: mmap.mmap) -> None:
    """Hold the worker's output and its descendants, and wait for it; what it left behind ends with this process."""
    os.setpgid(0, 0)
    for role, descriptor in (("stdout", 1), ("stderr", 2)):
        connection = _connect(boot.directory)
        Peer(connection, boot.directory, worker).send(wire.Hello(role=role, id=worker))
        os.dup2(connection.fileno(), descriptor)
        connection.close()
    if not isolated:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # to end its descendants, since no namespace will
    child = os.fork()
    if child == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _live(lambda: _worker(boot, worker))
    if not isolated:
        signal.signal(signal.SIGTERM, lambda number, frame: _live(_end_descendants))
    pid, status = os.wait()
    while pid != child:
        pid, status = os.wait()
    ended[:] = _ENDED.pack(True, os.waitstatus_to_exitcode(status))
    if not isolated:
        _end_descendants()


def _worker(boot: Boot, worker: str) -> None:
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # else all workers draw the same numbers; `random` does it by itself
    for name, descriptor in (("stdout", 1), ("stderr", 2)):  # made anew: those of the template took what it wrote to for a file
        stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    if boot.warmup:
        _warm_up(boot.warmup)
    peer = Peer(_connect(boot.directory), boot.directory, worker)
    peer.send(wire.Hello(role="worker", id=worker))
    serve(peer, boot.directory)


def _why_not_fork() -> str:
    """A child of a process with threads inherits their locks and not the threads; one with a CUDA context inherits nothing that works."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the zygote has {threads} threads; a module that it preloads starts some: remove it from `preload`"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the zygote has a CUDA context, which does not survive a fork; a module that it preloads makes it: remove it from `preload`"
    return ""


def _connect(directory: str) -> socket.socket:
    """Connect to the socket in a directory, whose path may be longer than an address holds (108 bytes): through its descriptor."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection.connect(f"/proc/self/fd/{folder}/{wire.SOCKET_NAME}")
    os.close(folder)
    return connection


def new_pid_namespace(*, first: bool) -> bool:
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


def _end_descendants() -> None:
    """Without a namespace: end every descendant, those that a dying one hands up included, until there is none."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with open("/proc/thread-self/children") as children:
                for pid in children.read().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            os.wait()


def _live(body: Callable[[], None]) -> NoReturn:
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
