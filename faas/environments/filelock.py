"""File locks among processes of one machine, as flock(2) has them. Knows no environment: only paths and descriptors."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path


def open_lock(path: Path) -> int:
    """Never unlinked: a name that comes and goes would let two processes hold two files of one name."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(file: int) -> bool:
    """Whether nobody held it, so that it is held now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def wait_for_lock(file: int) -> int:
    """Wait until another process gives the lock up. Takes `file` over: returns it locked, or closes it.

    On a daemon thread, since flock cannot be cancelled: a caller that gives up leaves, and the thread lets go once it gets the lock.
    """
    loop = asyncio.get_running_loop()
    locked: asyncio.Future[None] = loop.create_future()
    owner = "thread"
    handover = threading.Lock()

    def wait() -> None:
        nonlocal owner
        fcntl.flock(file, fcntl.LOCK_EX)
        with handover:
            if owner == "nobody":
                os.close(file)
                return
            owner = "caller"
        with suppress(RuntimeError):  # the loop has closed, so the caller has been cancelled and has closed the file
            loop.call_soon_threadsafe(_settle, locked)

    threading.Thread(target=wait, name="faas-build-lock", daemon=True).start()
    try:
        await locked
    except BaseException:
        with handover:
            if owner == "caller":
                os.close(file)
            owner = "nobody"
        raise
    return file


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():  # cancelled meanwhile
        future.set_result(None)


def share(path: Path) -> int:
    """Hold a lock together with others that share it, until the descriptor is closed. Who holds it alone does so for a moment only."""
    file = open_lock(path)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock at this moment. Makes no file."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(file)
    finally:
        os.close(file)
