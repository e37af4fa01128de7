"""Turns a profile's lock into a virtual environment in the state folder, once per digest, whole or absent. Knows no function and no worker.

An environment is built beside its place under a name that begins with BUILDING_PREFIX and renamed when complete, so that a
node killed while building leaves nothing that could be taken for one. A file lock per digest keeps two processes apart.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from faas.environments.installer import InstallerFailed, Sources, find_sources, find_uv, run_uv
from faas.environments.interpreter import Interpreter, find_interpreter
from faas.environments.lockfile import LockFile, Pin, lock_path, read_lock, source_path
from faas.errors import EnvironmentFailed
from faas.model import Environment, RuntimeProfile

BUILDING_PREFIX = "building-"
RECORD_FILE = "faas.json"
"""Written last into an environment: its Environment struct."""

_FORMAT = 1  # raise it when the way of building changes, so that environments built the old way are not taken
_PHASES = {"Resolved": "downloading", "Prepared": "installing", "Installed": "compiling bytecode"}
_DOWNLOADING = re.compile(r"Downloading (\S+) \((.+)\)")


class BuildProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a build stands. `phase` is in words; `download_bytes` is the whole of it as the lock tells, 0 where it does not."""

    profile: str
    phase: str
    download_bytes: int
    elapsed_s: float


Progress = Callable[[BuildProgress], None]


def environment_digest(profile: RuntimeProfile, lock: bytes, interpreter: Interpreter) -> str:
    """SHA-256 hex over what makes an environment: profile, lock, interpreter's minor version, platform.

    Of the profile what its processes are made of counts: limits and pool sizes may change without a build.
    """
    parts = (_FORMAT, profile.version, profile.python, profile.preload, profile.warmup, interpreter.version, interpreter.platform)
    return hashlib.sha256(msgspec.json.encode((parts, hashlib.sha256(lock).hexdigest()))).hexdigest()


class Builder:
    """Environments of one state folder. An async context manager: entering it removes what killed builds left behind."""

    def __init__(self, folder: Path, *, uv: str = "") -> None:
        """`folder` is STATE/environments; `uv` the program, "" to look for it when something has to be built."""
        self._folder = folder.resolve()
        self._uv = uv
        self._locks: dict[str, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(_remove_leftovers, self._folder)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Builds belong to the tasks that asked for them and end with those."""

    async def find(self, profile: RuntimeProfile) -> Environment | None:
        """The environment where it is built already. Raises EnvironmentFailed where there is no lock or no interpreter for it."""
        interpreter = await find_interpreter(profile.name, profile.python)
        return self._read(profile, environment_digest(profile, read_lock(profile).data, interpreter))

    async def ensure(self, profile: RuntimeProfile, progress: Progress = lambda _: None) -> Environment:
        """The environment of a profile, built where it is absent. Callers that ask for one digest at once share one build.

        Raises EnvironmentFailed. Cancelled: the build ends, and the next caller that waits for it starts anew.
        """
        started = time.monotonic()
        interpreter = await find_interpreter(profile.name, profile.python)
        lock = read_lock(profile)
        digest = environment_digest(profile, lock.data, interpreter)
        if (built := self._read(profile, digest)) is not None:
            return built

        def report(phase: str) -> None:
            elapsed_s = time.monotonic() - started
            progress(BuildProgress(profile=profile.name, phase=phase, download_bytes=lock.download_bytes, elapsed_s=elapsed_s))

        async with self._alone(profile, digest, report):
            built = self._read(profile, digest)
            if built is None:
                build = _Build(profile=profile, interpreter=interpreter, lock=lock, digest=digest, folder=self._folder, report=report)
                built = await build.run(self._uv or find_uv(profile.name))
        report("ready")
        return built

    def _read(self, profile: RuntimeProfile, digest: str) -> Environment | None:
        """What the record of a built environment says; None where it is absent, or its interpreter has been uninstalled."""
        try:
            record = msgspec.json.decode((self._folder / digest / RECORD_FILE).read_bytes(), type=Environment)
        except (OSError, msgspec.DecodeError):
            return None
        python = self._folder / digest / "bin" / "python"  # not the recorded one: the state folder may have moved
        if not os.access(python, os.X_OK):
            return None
        return msgspec.structs.replace(record, profile=profile.name, python=str(python))

    @asynccontextmanager
    async def _alone(self, profile: RuntimeProfile, digest: str, report: Callable[[str], None]) -> AsyncIterator[None]:
        """The right to build one digest: within this process by an asyncio lock, among processes by a file's."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        if lock.locked():
            report("waiting for the same build")
        async with lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                file = _open_lock(self._folder, digest)
            except OSError as error:
                raise _cannot_write(profile, self._folder, error) from error
            if not _try_lock(file):
                report("waiting for the same build in another process")
                file = await _wait_for_lock(file)
            try:
                yield
            finally:
                os.close(file)


@dataclass(slots=True, kw_only=True)
class _Build:
    """One build, whose steps share what they know. `folder` is where its environment will stand."""

    profile: RuntimeProfile
    interpreter: Interpreter
    lock: LockFile
    digest: str
    folder: Path
    report: Callable[[str], None]

    async def run(self, uv: str) -> Environment:
        """Raises EnvironmentFailed; then, and when cancelled, nothing is left."""
        place = self.folder / f"{BUILDING_PREFIX}{self.digest}-{secrets.token_hex(4)}"
        sources = await find_sources(self.lock.pins, self.interpreter)
        try:
            await self._install(uv, place, sources)
            await asyncio.to_thread(shutil.rmtree, self.folder / self.digest, ignore_errors=True)  # one whose interpreter is gone
            size_bytes = await asyncio.to_thread(_size_bytes, place)
            return self._complete(place, size_bytes)
        except InstallerFailed as error:
            raise EnvironmentFailed(
                self.profile.name, explain(error.output, self.profile, self.interpreter, absent=sources.absent)
            ) from error
        except OSError as error:
            raise _cannot_write(self.profile, self.folder, error) from error
        finally:
            if place.exists():  # it was not renamed
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def _install(self, uv: str, place: Path, sources: Sources) -> None:
        self.report("creating")
        await run_uv(
            uv,
            ("venv", "--quiet", "--no-project", "--relocatable", "--python", self.interpreter.executable, str(place)),
            folder=self.folder,
        )
        self.report("resolving")
        # Installed from a copy: the digest is of these bytes, and the file may be edited meanwhile.
        locked = place / "requirements.lock"
        locked.write_bytes(self.lock.data)
        arguments = (
            "pip",
            "sync",
            "--python",
            str(place / "bin" / "python"),
            "--require-hashes",
            "--compile-bytecode",
            "--allow-empty-requirements",
        )
        await run_uv(uv, (*arguments, *sources.arguments, str(locked)), folder=self.folder, on_line=self._hear)

    def _hear(self, line: str) -> None:
        """uv's messages as phases."""
        downloading = _DOWNLOADING.match(line.strip())
        if downloading is not None:
            self.report(f"downloading {downloading[1]} ({downloading[2]})")
        elif (phase := _PHASES.get(line.partition(" ")[0])) is not None:
            self.report(phase)

    def _complete(self, place: Path, size_bytes: int) -> Environment:
        """Record what was built and give it its name: the moment from which it exists.

        On the loop, not in a thread: one that outlived a cancellation would rename what is being deleted.
        """
        final = self.folder / self.digest
        python = str(final / "bin" / "python")
        environment = Environment(profile=self.profile.name, digest=self.digest, python=python, size_bytes=size_bytes)
        (place / RECORD_FILE).write_bytes(msgspec.json.encode(environment))
        place.rename(final)
        return environment


def explain(output: str, profile: RuntimeProfile, interpreter: Interpreter, *, absent: Sequence[Pin] = ()) -> str:
    """uv's last lines, and before them one sentence: what is wrong and what to do. `absent` lies in none of the machine's folders of wheels."""
    lock = lock_path(profile).name
    here = f"Python {interpreter.version} on {interpreter.platform}"
    uncovered = re.search(r"(?:Because\s+)?([A-Za-z0-9][\w.-]*)(?:\{[^}]*\})?==(\S+)\s+has\s+no\s+wheels\s+with\s+a\s+matching", output)
    mismatch = re.search(r"Hash mismatch for `([^`]+)`", output)
    network = re.search(r"(?:Failed to fetch|error sending request|Could not connect|dns error|timed out)", output)
    unlocked = re.search(r"(?:no hashes were provided|have a hash|no hashes|--require-hashes)", output)
    if uncovered is not None:
        sentence = (
            f"{lock} does not cover {here}: there is no wheel of {uncovered[1]} {uncovered[2]} for it; "
            f"run the node on a Python that the lock covers, or change {uncovered[1]} in {source_path(profile).name} and type: faas lock {profile.name}"
        )
    elif mismatch is not None:
        sentence = (
            f"the file of {mismatch[1]} that was found for {here} is none that {lock} allows; "
            f"where you trust its source, type: faas lock {profile.name}"
        )
    elif network is not None and absent:
        named = ", ".join(f"{pin.name} {pin.version}" for pin in absent)
        sentence = (
            f"no find-links folder of pip has {named} for {here}, and the index that has it did not answer; "
            "check the network, or run the node on a Python whose wheel lies in such a folder"
        )
    elif network is not None:
        sentence = "a package index did not answer; check the network (or pip's find-links folders) and try again"
    elif "No space left" in output:
        sentence = "the disk is full; free some space and try again"
    elif unlocked is not None:
        sentence = f"{lock} does not pin everything by hash; type: faas lock {profile.name}"
    else:
        sentence = f"uv could not install {lock} for {here}; its last lines say why"
    return f"{sentence}\n{output}"


def _cannot_write(profile: RuntimeProfile, folder: Path, error: OSError) -> EnvironmentFailed:
    return EnvironmentFailed(profile.name, f"cannot write to {folder} ({error.strerror}); name another state folder with --state DIR")


def _size_bytes(folder: Path) -> int:
    return sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names)


# ---------------------------------------------------------------- file locks


def _open_lock(folder: Path, digest: str) -> int:
    """Never unlinked: a name that comes and goes would let two processes hold two files of one name."""
    return os.open(folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _wait_for_lock(file: int) -> int:
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


def _remove_leftovers(folder: Path) -> None:
    """Delete half-built environments whose builder is dead: its lock is free. Does nothing where the folder is absent or may not be written."""
    for place in folder.glob(f"{BUILDING_PREFIX}*"):
        digest = place.name.removeprefix(BUILDING_PREFIX).rpartition("-")[0]
        try:
            file = _open_lock(folder, digest)
        except OSError:
            continue
        try:
            if _try_lock(file):
                shutil.rmtree(place, ignore_errors=True)
        finally:
            os.close(file)
