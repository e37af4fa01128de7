"""Turns a profile's lock into a virtual environment, and a function's into a folder of packages beside it. Knows uv's way of both, and no worker.

Where they stand, and that each digest is built once, is `store`'s. An overlay holds what a function's lock adds to its
profile's: it is built with the interpreter of the profile's environment, which it changes nothing of.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from faas.environments.dependencies import problem_of
from faas.environments.failure import Whose, failed, of_function, of_profile
from faas.environments.installer import InstallerFailed, Sources, find_sources, find_uv, has_wheel, run_uv, wheel_folders
from faas.environments.interpreter import Interpreter, find_interpreter
from faas.environments.lockfile import LockFile, read_function_lock, read_lock, stale_warning
from faas.environments.store import PACKAGES_FOLDER, Report, Store
from faas.errors import EnvironmentFailed
from faas.model import Environment, FunctionVersion, RuntimeProfile

_FORMAT = 1  # raise it when the way of building changes, so that environments built the old way are not taken
_PHASES = {"Resolved": "downloading", "Prepared": "installing", "Installed": "compiling bytecode"}
_DOWNLOADING = re.compile(r"Downloading (\S+) \((.+)\)")


class BuildProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a build stands. `phase` is in words; `download_bytes` is the whole of it as the lock tells, 0 where it does not."""

    profile: str
    phase: str
    download_bytes: int
    elapsed_s: float
    function: str = ""  # whose packages these are; "" for the profile's environment


Progress = Callable[[BuildProgress], None]


def environment_digest(profile: RuntimeProfile, lock: bytes, interpreter: Interpreter) -> str:
    """SHA-256 hex over what makes an environment: profile, lock, interpreter's minor version, platform.

    Of the profile what its processes are made of counts: limits and pool sizes may change without a build.
    """
    parts = (_FORMAT, profile.version, profile.python, profile.preload, profile.warmup, interpreter.version, interpreter.platform)
    return hashlib.sha256(msgspec.json.encode((parts, hashlib.sha256(lock).hexdigest()))).hexdigest()


def overlay_digest(environment: str, lock: bytes) -> str:
    """SHA-256 hex over the digest of a profile's environment and a function's lock."""
    return hashlib.sha256(environment.encode() + lock).hexdigest()


async def digest_of(profile: RuntimeProfile) -> str:
    """What the environment of a profile is called here. Raises EnvironmentFailed where there is no lock or no interpreter for it."""
    return environment_digest(profile, read_lock(profile).data, await find_interpreter(profile.name, profile.python))


class Builder:
    """Environments of one state folder. An async context manager: entering it removes what killed builds left behind."""

    def __init__(self, folder: Path, *, uv: str = "") -> None:
        """`folder` is STATE/environments; `uv` the program, "" to look for it when something has to be built."""
        self.store = Store(folder)
        self._uv = uv

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.store.remove_leftovers)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Builds belong to the tasks that asked for them and end with those."""
        self.store.close()

    async def find(self, profile: RuntimeProfile) -> Environment | None:
        """The environment where it is built already. Raises EnvironmentFailed where there is no lock or no interpreter for it."""
        return _of(profile, self.store.read(await digest_of(profile)))

    async def ensure(self, profile: RuntimeProfile, progress: Progress = lambda _: None) -> Environment:
        """The environment of a profile, built where it is absent. Callers that ask for one digest at once share one build.

        Raises EnvironmentFailed. Cancelled: the build ends, and the next caller that waits for it starts anew.
        """
        lock = read_lock(profile)
        interpreter = await find_interpreter(profile.name, profile.python)
        digest = environment_digest(profile, lock.data, interpreter)
        report = _reporter(progress, profile, lock)
        installation = self._installation(of_profile(profile), lock, interpreter, report=report)

        async def make(place: Path) -> Environment:
            await installation.environment(place)
            return Environment(profile=profile.name, digest=digest, python=str(self.store.folder / digest / "bin" / "python"))

        built = await self.store.once(digest, make, name=profile.name, report=report)
        return msgspec.structs.replace(built, profile=profile.name)

    async def ensure_overlay(self, function: FunctionVersion, profile: RuntimeProfile, progress: Progress = lambda _: None) -> Environment:
        """The environment of a profile with the packages of a function of it beside, both built where they are absent. Raises as `ensure` does."""
        if problem := problem_of(function, profile):  # once more: the files of the profile may have been edited since the node started
            raise EnvironmentFailed(function.spec.name, problem)
        environment = await self.ensure(profile, progress)
        if not function.lock:
            return environment
        lock = read_function_lock(function)
        digest = overlay_digest(environment.digest, lock.data)
        if lock.is_empty:  # all that it asks for is in the profile's environment
            return msgspec.structs.replace(environment, digest=digest, size_bytes=0)
        interpreter = await find_interpreter(profile.name, profile.python)
        report = _reporter(progress, profile, lock, function=function.spec.name)
        installation = self._installation(of_function(function), lock, interpreter, report=report)

        async def make(place: Path) -> Environment:
            await installation.overlay(place, environment.python)
            folder = self.store.folder / digest / PACKAGES_FOLDER
            return Environment(profile=profile.name, digest=digest, python=environment.python, overlay=str(folder))

        built = await self.store.once(digest, make, name=function.spec.name, report=report)
        return msgspec.structs.replace(built, profile=profile.name, python=environment.python)

    async def problems(self, functions: Sequence[FunctionVersion], profiles: Mapping[str, RuntimeProfile]) -> dict[tuple[str, str], str]:
        """By (tenant, function): why its lock may not be used, as a sentence that says what to type."""
        found = {}
        for function in functions:
            try:
                problem = problem_of(function, profiles[function.spec.runtime])
            except EnvironmentFailed as error:  # of the profile's lock it is said when that is to be built
                problem = error.detail if error.name == function.spec.name else ""
            if problem:
                found[function.key] = problem
        return found

    def warnings(self, profiles: Sequence[RuntimeProfile]) -> list[str]:
        """A sentence for each profile whose requirements were edited after its lock was made."""
        return [sentence for profile in profiles if (sentence := stale_warning(profile))]

    def _installation(self, whose: Whose, lock: LockFile, interpreter: Interpreter, *, report: Report) -> _Installation:
        return _Installation(whose=whose, lock=lock, interpreter=interpreter, uv=self._uv, folder=self.store.folder, report=report)


def _of(profile: RuntimeProfile, built: Environment | None) -> Environment | None:
    """Two profiles of one content share an environment, which has the name of the one that asks."""
    return None if built is None else msgspec.structs.replace(built, profile=profile.name)


def _reporter(progress: Progress, profile: RuntimeProfile, lock: LockFile, *, function: str = "") -> Report:
    started = time.monotonic()

    def report(phase: str) -> None:
        elapsed_s = time.monotonic() - started
        progress(
            BuildProgress(profile=profile.name, phase=phase, download_bytes=lock.download_bytes, elapsed_s=elapsed_s, function=function)
        )

    return report


@dataclass(slots=True, kw_only=True)
class _Installation:
    """uv at work on one lock, in a folder that is not yet what it will be called. Raises EnvironmentFailed."""

    whose: Whose
    lock: LockFile
    interpreter: Interpreter
    uv: str
    folder: Path
    report: Report

    async def environment(self, place: Path) -> None:
        """A virtual environment that holds exactly what the lock says."""
        sources = await find_sources(self.lock.pins, self.interpreter)
        try:
            self.report("creating")
            await self._run("venv", "--quiet", "--no-project", "--relocatable", "--python", self.interpreter.executable, str(place))
            await self._install(
                *("sync", "--python", str(place / "bin" / "python"), "--allow-empty-requirements"),
                *(*sources.arguments, self._copy_lock(place)),
            )
        except InstallerFailed as error:
            raise failed(error, self.whose, self.interpreter, absent=sources.absent) from error

    async def overlay(self, place: Path, python: str) -> None:
        """The packages of the lock alone, in a folder of their own, for this interpreter."""
        packages = place / PACKAGES_FOLDER
        packages.mkdir(parents=True)
        arguments = ("install", "--python", python, "--target", str(packages), "--no-deps", "-r", self._copy_lock(place))
        sources = await find_sources(self.lock.pins, self.interpreter)
        try:
            if not await self._install_offline(*arguments):
                await self._install(*arguments, *sources.arguments)
        except InstallerFailed as error:
            raise failed(error, self.whose, self.interpreter, absent=sources.absent) from error

    async def _install_offline(self, *arguments: str) -> bool:
        """From the machine's folders of wheels alone, where they have everything; False where they have not, or have other files than the lock's."""
        folders = await wheel_folders(os.environ)
        if not all(has_wheel(folders, pin, self.interpreter) for pin in self.lock.pins):
            return False
        try:
            await self._install(*arguments, "--no-index", *Sources.of(folders).arguments)
        except InstallerFailed as error:
            if error.signal:
                raise
            return False
        return True

    def _copy_lock(self, place: Path) -> str:
        """Installed from a copy: the digest is of these bytes, and the file may be edited meanwhile."""
        copy = place / "requirements.lock"
        copy.write_bytes(self.lock.data)
        return str(copy)

    async def _install(self, *arguments: str) -> None:
        self.report("resolving")
        await self._run(
            "pip", *arguments, "--require-hashes", "--no-build", "--compile-bytecode"
        )  # what is built from source runs code of its own here

    async def _run(self, *arguments: str) -> None:
        await run_uv(self.uv or find_uv(self.whose.name), arguments, folder=self.folder, on_line=self._hear)

    def _hear(self, line: str) -> None:
        """uv's messages as phases."""
        downloading = _DOWNLOADING.match(line.strip())
        if downloading is not None:
            self.report(f"downloading {downloading[1]} ({downloading[2]})")
        elif (phase := _PHASES.get(line.partition(" ")[0])) is not None:
            self.report(phase)
