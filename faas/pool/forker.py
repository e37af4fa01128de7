"""The node's end of a template or a zygote: it is told what to fork, and says what became of it. Knows no profile and no worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from faas.pool.listener import Caller, Frames, listen
from faas.worker import wire

log = structlog.get_logger()


class Forker:
    """The node's end of a process that forks others when it is told to: one socket, one process."""

    def __init__(self, id: str, directory: Path) -> None:
        self.id, self.directory = id, directory
        self.alive = False
        self.isolated = False
        self.asked: dict[str, asyncio.Future[object]] = {}  # id of what is being forked, or the own one -> who waits for it
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.AbstractServer | None = None
        self._peer: asyncio.Transport | None = None
        self._pidfd = -1
        self.pid = 0  # of its process, as this machine counts; 0 until that has said hello

    @property
    def is_known(self) -> bool:
        """Whether its process has said hello, and can be killed."""
        return self._pidfd >= 0

    async def listen(self) -> None:
        """Make its directory and wait there for its process."""
        self._server = await listen(self.directory, self.welcome)

    @contextmanager
    def asking(self, id: str) -> Iterator[asyncio.Future[object]]:
        """A future for what has this id: a hello, a worker, or why there will be none."""
        answer = self.asked[id] = self._loop.create_future()
        try:
            yield answer
        finally:
            del self.asked[id]

    def answer(self, id: str, what: object) -> None:
        """Tell who waits for this id, if there is somebody."""
        waiting = self.asked.get(id)
        if waiting is not None and not waiting.done():
            waiting.set_result(what)

    def send(self, message: wire.HostMessage) -> None:
        if self._peer is not None:
            self._peer.write(wire.encode(message))

    def welcome(self, caller: Caller) -> asyncio.Protocol | None:
        """Who reads a new connection: this, where it is the one process that it waits for. Subclasses know others."""
        if caller.hello.id != self.id or self._peer is not None or self.id not in self.asked:
            return None
        try:
            self._pidfd = os.pidfd_open(caller.pid)
        except ProcessLookupError:
            return None
        self._peer, self.pid, self.alive, self.isolated = caller.transport, caller.pid, True, caller.hello.isolated
        self.answer(self.id, caller.hello)
        return Frames(self)

    def received(self, message: wire.SandboxMessage) -> None:
        """A later message of the process: what it could not fork."""
        if isinstance(message, wire.Broken):
            self.answer(message.id, message)

    def broken(self, problem: str) -> None:
        log.warning("sandbox.broken", sandbox=self.id, problem=problem)
        self.kill()

    def lost(self) -> None:
        """Its connection has ended, so it has, with everything below it."""
        self.kill()
        for id in self.asked:
            self.answer(id, wire.Broken(id=id, detail="the process that forks it ended"))

    def kill(self) -> None:
        """End it and everything below it now. Returns at once; may be called again."""
        self.alive = False
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._peer is not None:
            self._peer.abort()
