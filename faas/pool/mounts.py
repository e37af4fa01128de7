"""Puts in place what functions mount: copies a function's own folders once per digest below the state folder, and checks those of the node.

A copy is made beside its place and renamed when it is complete, with modes that only let it be read. Knows no worker: whoever
loads one takes the paths from `Mounts.stage` and hands them over as `ctx.mounts`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import structlog

from faas.errors import MountFailed, SpecInvalid
from faas.model import FunctionVersion, MountedFolder
from faas.registry.mounts import MountDigest, contents, copy_hashed, is_allowed

log = structlog.get_logger()

OTHER_PROCESS_S = 0.05
"""How often a copy that another process makes is looked for; flock cannot be given up while it waits, and nothing announces its end."""


class Mounts:
    """The mounts of one node. `folder` is STATE/mounts, made when it is needed; `allowed` are the `[node] mounts` of `faas.toml`.

    ```python
    mounts = Mounts(config.state / "mounts", config.mounts)
    paths = await mounts.stage(function)        # {"model": "/…/mounts/<digest>"}: `ctx.mounts` of its workers
    ```
    """

    def __init__(self, folder: Path, allowed: Sequence[str] = ()) -> None:
        self._folder = folder.absolute()
        self._allowed = tuple(allowed)
        self._locks: dict[str, asyncio.Lock] = {}

    async def stage(self, function: FunctionVersion) -> dict[str, str]:
        """Target -> absolute path of everything that a function mounts; {} at once where it mounts nothing.

        Call it before a lease, and once for each worker that is loaded: the first call copies, later ones look whether it is there.
        Any number of tasks and processes may ask at once. Raises MountFailed, an EnvironmentFailed; then, and when cancelled,
        nothing that is half a copy is left under a digest.
        """
        return {mounted.target: await self._placed(function.spec.name, mounted) for mounted in function.mounts}

    async def _placed(self, function: str, mounted: MountedFolder) -> str:
        if not mounted.copied:
            return await asyncio.to_thread(self._of_the_node, function, mounted)
        final = self._folder / mounted.digest
        async with self._locks.setdefault(mounted.digest, asyncio.Lock()):
            if not final.is_dir():
                given_up = threading.Event()
                try:
                    await asyncio.to_thread(self._copy, function, mounted, given_up)
                finally:
                    given_up.set()
        return str(final)

    def _of_the_node(self, function: str, mounted: MountedFolder) -> str:
        """Used where it is. Looked at again, since a link may lead elsewhere than when the declaration was read."""
        real = os.path.realpath(mounted.source)
        if not os.path.isdir(real):
            raise MountFailed(function, mounted.source, "is no folder any more; put it back, or change the source of the mount")
        if not is_allowed(real, self._allowed):
            raise MountFailed(function, mounted.source, "leads out of the folders that [node] mounts of faas.toml allows")
        return real

    def _copy(self, function: str, mounted: MountedFolder, given_up: threading.Event) -> None:
        final, unfinished = self._folder / mounted.digest, self._folder / f"{mounted.digest}.unfinished"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone(self._folder / f"{mounted.digest}.lock", given_up):
                if final.is_dir():
                    return
                _remove(unfinished)  # of a process that was killed
                try:
                    digest = _write(Path(mounted.source), unfinished, given_up)
                    if digest != mounted.digest:
                        raise MountFailed(function, mounted.source, "has changed since it was read; start the node again")
                    unfinished.rename(final)
                finally:
                    _remove(unfinished)
        except SpecInvalid as error:
            raise MountFailed(function, mounted.source, f"has changed since it was read: {error}; start the node again") from error
        except FileNotFoundError as error:
            raise MountFailed(function, mounted.source, f"{error.filename} is gone; start the node again") from error
        except OSError as error:
            raise MountFailed(function, mounted.source, f"cannot be copied to {self._folder}: {error.strerror}") from error
        log.info("mount.copied", function=function, source=mounted.source, digest=mounted.digest)


class _GivenUp(Exception):
    """Nobody waits for the copy any more."""


@contextmanager
def _alone(path: Path, given_up: threading.Event) -> Iterator[None]:
    """The right to copy one digest, among processes: what is unfinished under it is then nobody's."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if given_up.wait(OTHER_PROCESS_S):
                    raise _GivenUp from None
        yield
    finally:
        os.close(lock)


def _write(source: Path, target: Path, given_up: threading.Event) -> str:
    """Copy all files, on the disk when it returns; the digest of what was copied."""
    digest = MountDigest()
    target.mkdir(mode=0o700)
    for inside, path in contents(source, str(source)):
        copy = target / inside
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with copy.open("xb") as file:
            digest.add(inside, copy_hashed(path, inside, partial(_write_chunk, file, given_up)))
            file.flush()
            os.fsync(file.fileno())
        copy.chmod(0o444)
    for root, _folders, _files in os.walk(target, topdown=False):
        os.chmod(root, 0o555)
    return digest.hexdigest()


def _write_chunk(file: BinaryIO, given_up: threading.Event, chunk: bytes) -> None:
    if given_up.is_set():
        raise _GivenUp
    file.write(chunk)


def _remove(folder: Path) -> None:
    """Read-only folders let nothing be taken out of them but by root."""
    for root, _folders, _files in os.walk(folder):
        os.chmod(root, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
