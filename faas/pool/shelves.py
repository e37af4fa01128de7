"""Folders for what may lie on no disk: one for each worker that has secrets, on a tmpfs where this machine has one that may be written.

Made when they are needed and gone with their worker; what a node that was killed has left goes when it starts again.
Knows no secret: whoever is given a folder writes into it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

import structlog

log = structlog.get_logger()

PLACES = ("/dev/shm", "/run/user/{uid}", "/run")
"""Where a tmpfs usually is, and who may write there: everybody, one user, root."""


class Shelves:
    """The folders of one node; `state` tells it from others of this machine."""

    def __init__(self, state: Path) -> None:
        self._else = state / "run"
        self._prefix = f"faas-{hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:12]}-"
        self._folder: Path | None = None

    def sweep(self) -> None:
        """Remove what this node has left, now and before."""
        self._folder = None
        for place in (*_tmpfs(), self._else):
            for left in place.glob(f"{self._prefix}*"):
                seen = left.lstat()
                if stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid():
                    shutil.rmtree(left, ignore_errors=True)

    def of(self, worker: str) -> Shelf:
        """The folder of a worker, which is not there yet."""
        return Shelf(self, worker)

    def folder(self) -> Path:
        """The one that holds them all, for this user alone. Raises OSError."""
        if self._folder is None or not self._folder.is_dir():
            place = next(iter(_tmpfs()), None)
            if place is None:
                log.warning("secrets.no_tmpfs", folder=str(self._else), means="files of secrets may reach the disk")
            self._folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=place or self._else))
        return self._folder


class Shelf:
    """One worker's folder."""

    def __init__(self, shelves: Shelves, worker: str) -> None:
        self._shelves, self._worker = shelves, worker
        self._path: Path | None = None

    def make(self) -> str:
        """Its path, empty, 0700. Raises OSError."""
        self._path = self._shelves.folder() / self._worker
        self._path.mkdir(mode=0o700)
        return str(self._path)

    def remove(self) -> None:
        """It goes, with what is in it."""
        path, self._path = self._path, None
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)


def _tmpfs() -> list[Path]:
    """The places that are a tmpfs of their own and that this user may write. Source: proc_pid_mounts(5)."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return []
    there = {fields[1]: fields[2] for fields in mounts if len(fields) > 2}
    places = [place.format(uid=os.getuid()) for place in PLACES]
    return [Path(place) for place in places if there.get(place) in ("tmpfs", "ramfs") and os.access(place, os.W_OK | os.X_OK)]
