"""The folder of what is built: STATE/environments/<digest>, each made once, whole or absent. Knows names and locks, not what is in them.

One is made beside its place under a name that begins with BUILDING_PREFIX and renamed when complete, so that a node killed
meanwhile leaves nothing that could be taken for it. Of two file locks for each digest one keeps two makers apart, and one is
shared by those that use it, so that nobody removes it below them.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from faas.environments.filelock import is_locked, open_lock, share, try_lock, wait_for_lock
from faas.errors import EnvironmentFailed
from faas.model import Environment

BUILDING_PREFIX = "building-"
RECORD_FILE = "faas.json"
"""Written last into an environment: its Environment struct."""
PACKAGES_FOLDER = "packages"
"""Of an overlay: what goes onto sys.path."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

Make = Callable[[Path], Awaitable[Environment]]
Report = Callable[[str], None]


class Store:
    """What is built in one folder. `close` gives up the hold on what `once` returned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._making: dict[str, asyncio.Lock] = {}
        self._held: dict[str, int] = {}

    def close(self) -> None:
        """Use nothing any more."""
        while self._held:
            os.close(self._held.popitem()[1])

    def read(self, digest: str) -> Environment | None:
        """What the record says, its paths as they are now: the state folder may have moved. None where it is absent, or its interpreter is gone."""
        place = self.folder / digest
        try:
            record = msgspec.json.decode((place / RECORD_FILE).read_bytes(), type=Environment)
        except (OSError, msgspec.DecodeError):
            return None
        if record.overlay:
            packages = place / PACKAGES_FOLDER
            return msgspec.structs.replace(record, overlay=str(packages)) if packages.is_dir() else None
        python = place / "bin" / "python"
        return msgspec.structs.replace(record, python=str(python)) if os.access(python, os.X_OK) else None

    def is_building(self, digest: str) -> bool:
        """Whether somebody makes it at this moment, in whatever process."""
        return is_locked(self._lock(digest))

    # ------------------------------------------------------------ making

    async def once(self, digest: str, make: Make, *, name: str, report: Report) -> Environment:
        """What is there under a digest, else what `make` puts into the folder that it is given. `name` is whose, for an error.

        Callers that ask for one digest at once share one making. Raises EnvironmentFailed; then, and when cancelled, nothing is left.
        """
        self._hold(digest)
        if (built := self.read(digest)) is not None:
            return built
        async with self._alone(digest, name=name, report=report):
            built = self.read(digest) or await self._make(digest, make, name)
        report("ready")
        return built

    async def _make(self, digest: str, make: Make, name: str) -> Environment:
        place = self.folder / f"{BUILDING_PREFIX}{digest}-{secrets.token_hex(4)}"
        try:
            record = await make(place)
            await asyncio.to_thread(shutil.rmtree, self.folder / digest, ignore_errors=True)  # one whose interpreter is gone
            size_bytes = await asyncio.to_thread(_size_bytes, place)
            return self._complete(place, msgspec.structs.replace(record, size_bytes=size_bytes))
        except OSError as error:
            raise _cannot_write(name, self.folder, error) from error
        finally:
            if place.exists():  # it was not renamed
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    def _complete(self, place: Path, record: Environment) -> Environment:
        """Write its record and give it its name: the moment from which it exists.

        On the loop, not in a thread: one that outlived a cancellation would rename what is being deleted.
        """
        (place / RECORD_FILE).write_bytes(msgspec.json.encode(record))
        place.rename(self.folder / record.digest)
        built = self.read(record.digest)
        assert built is not None  # it was written just now
        return built

    @asynccontextmanager
    async def _alone(self, digest: str, *, name: str, report: Report) -> AsyncIterator[None]:
        """The right to make one digest: within this process by an asyncio lock, among processes by a file's."""
        lock = self._making.setdefault(digest, asyncio.Lock())
        if lock.locked():
            report("waiting for the same build")
        async with lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = open_lock(self._lock(digest))
            except OSError as error:
                raise _cannot_write(name, self.folder, error) from error
            if not try_lock(file):
                report("waiting for the same build in another process")
                file = await wait_for_lock(file)
            try:
                yield
            finally:
                os.close(file)

    def _hold(self, digest: str) -> None:
        """Use it from now on. Before it is looked for: who removes it looks whether it is used first."""
        if digest in self._held:
            return
        with suppress(OSError):  # where this folder cannot be written, nobody removes anything from it
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held[digest] = share(self._use_lock(digest))

    # Never unlinked: a name that comes and goes would let two processes hold two files of one name.

    def _lock(self, digest: str) -> Path:
        return self.folder / f"{digest}.lock"

    def _use_lock(self, digest: str) -> Path:
        return self.folder / f"{digest}.used.lock"

    # ------------------------------------------------------------ removing

    def remove_leftovers(self) -> None:
        """Delete what is half made and whose maker is dead: its lock is free. Does nothing where the folder is absent or may not be written."""
        for place in self.folder.glob(f"{BUILDING_PREFIX}*"):
            digest = place.name.removeprefix(BUILDING_PREFIX).rpartition("-")[0]
            try:
                file = open_lock(self._lock(digest))
            except OSError:
                continue
            try:
                if try_lock(file):
                    shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(file)

    def digests(self) -> list[str]:
        """Everything that stands here under a digest, broken or not."""
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if _DIGEST.fullmatch(entry.name) and entry.is_dir())
        except OSError:
            return []

    def prune(self, wanted: Collection[str]) -> tuple[list[Pruned], list[str]]:
        """Remove everything but these. Returns what was removed, and the digests that somebody uses or makes at this moment and that stay.

        Raises OSError where it may not be removed.
        """
        removed: list[Pruned] = []
        used: list[str] = []
        for digest in self.digests():
            if digest in wanted:
                continue
            record = self.read(digest)
            size_bytes = _size_bytes(self.folder / digest)
            if not self._set_aside(digest):
                used.append(digest)
                continue
            removed.append(Pruned(digest=digest, profile=record.profile if record else "", size_bytes=size_bytes))
        self.remove_leftovers()
        return removed, used

    def _set_aside(self, digest: str) -> bool:
        """Give it the name of something half made, which `remove_leftovers` deletes; False where it is in use."""
        files = [open_lock(path) for path in (self._lock(digest), self._use_lock(digest))]
        try:
            free = all(map(try_lock, files))
            if free:
                (self.folder / digest).rename(self.folder / f"{BUILDING_PREFIX}{digest}-{secrets.token_hex(4)}")
            return free
        finally:
            for file in files:
                os.close(file)


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was removed; `profile` is "" where its record could not be read."""

    digest: str
    profile: str
    size_bytes: int


def _cannot_write(name: str, folder: Path, error: OSError) -> EnvironmentFailed:
    return EnvironmentFailed(name, f"cannot write to {folder} ({error.strerror}); name another state folder with --state DIR")


def _size_bytes(folder: Path) -> int:
    return sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names)
