"""The socket of one template or sandbox, and its connections: who they are, and the frames that they bring.

Owns the listening socket, the first frame of each connection and the time that it may take. Knows no process and no
function: who connects is handed to the owner, which says what reads the connection from then on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import structlog

from faas.worker import wire

log = structlog.get_logger()

GREETINGS = 64
"""Connections to one socket that have not said hello; each more is closed at once. A handler can reach it, and a node has only so many descriptors."""
REFUSALS_TOLD = 5
"""Of one socket: a handler that knocks for ever must not fill the log."""
HANDSHAKE_S = 10.0
"""From connecting to the first frame: our own code sends it at once, so who takes longer is not ours."""
_PEER = struct.Struct("3i")


@dataclass(slots=True)
class Caller:
    """Somebody who said hello: `pid` as this process counts, whatever namespace it lives in."""

    hello: wire.Hello
    pid: int
    transport: asyncio.Transport


Welcome = Callable[[Caller], asyncio.Protocol | None]
"""Says what reads the connection from now on; None refuses it."""


async def listen(directory: Path, welcome: Welcome) -> asyncio.AbstractServer:
    """Make the directory, 0700, and listen in it."""
    listening = _bind(directory)
    try:
        return await asyncio.get_running_loop().create_unix_server(partial(_Greeting, _Door(welcome)), sock=listening)
    except BaseException:
        listening.close()
        raise


def _bind(directory: Path) -> socket.socket:
    directory.mkdir(mode=0o700)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listening.bind(f"/proc/self/fd/{folder}/{wire.SOCKET_NAME}")  # the path itself may be longer than an address holds
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(folder)
    return listening


class Receiver(Protocol):
    """What frames are handed to."""

    def received(self, message: wire.SandboxMessage) -> None:
        """One message."""

    def broken(self, problem: str) -> None:
        """The peer sent what is no message; nothing more is handed on."""

    def lost(self) -> None:
        """The connection has ended; called once, last."""


class Frames(asyncio.Protocol):
    """A connection that carries messages."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._reader = wire.FrameReader()
        self._broken = False

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            for body in self._reader.feed(data):
                self._receiver.received(wire.decode_sandbox(body))
        except wire.WireError as error:
            self._broken = True
            self._receiver.broken(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.lost()


@dataclass(slots=True)
class _Door:
    """What the greetings at one socket share."""

    welcome: Welcome
    greetings: int = 0
    refused: int = 0


class _Greeting(asyncio.Protocol):
    """A connection until its first frame, which says whose it is."""

    def __init__(self, door: _Door) -> None:
        self._door = door
        self._greeting = True
        self._reader = wire.FrameReader()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass of it
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._refuse, "no hello in time")
        self._door.greetings += 1
        if self._door.greetings > GREETINGS:
            self._refuse("too many connections that say nothing")

    def data_received(self, data: bytes) -> None:
        try:
            body = next(self._reader.feed(data), None)
            if body is None:
                return
            hello = wire.decode_sandbox(body)
        except wire.WireError as error:
            self._refuse(str(error))
            return
        if not isinstance(hello, wire.Hello):
            self._refuse(f"{type(hello).__name__} before hello")
            return
        pid, user, _ = _PEER.unpack(self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        reader = self._door.welcome(Caller(hello, pid, self._transport)) if user == os.getuid() else None
        if reader is None:
            self._refuse(f"nobody expects {hello.role[:20]} {hello.id[:20]}")
            return
        self._end()
        self._transport.set_protocol(reader)
        rest = self._reader.rest()
        if rest:
            reader.data_received(rest)

    def _refuse(self, problem: str) -> None:
        self._door.refused += 1
        if self._door.refused <= REFUSALS_TOLD:
            log.warning("sandbox.refused", problem=problem, more="not told" if self._door.refused == REFUSALS_TOLD else "")
        self._end()
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        self._timer.cancel()
        self._door.greetings -= self._greeting
        self._greeting = False
