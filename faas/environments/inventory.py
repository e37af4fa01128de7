"""What stands in a state folder of the environments that profiles and functions ask for, and what nobody asks for. Looks only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from faas.environments.build import digest_of, environment_digest, overlay_digest
from faas.environments.dependencies import problem_of
from faas.environments.installer import plain_name
from faas.environments.interpreter import find_interpreter
from faas.environments.lockfile import Pin, read_function_lock, read_lock, stale_warning
from faas.environments.store import Store
from faas.errors import EnvironmentFailed
from faas.model import Environment, FunctionVersion, RuntimeProfile

State = Literal["built", "absent", "building", "invalid", "unused"]


class Package(msgspec.Struct, frozen=True):
    """A package of an environment: as it is installed, or as the lock has it where nothing is built."""

    name: str
    version: str


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One environment, or the packages of one `function` beside it ("": the profile's own). `problem` is a sentence that says what to type."""

    profile: str
    function: str = ""
    digest: str
    state: State
    stale_lock: bool = False
    problem: str = ""
    python: str = ""  # minor version, like "3.11"
    folder: str = ""  # where it stands, "" where it does not
    size_bytes: int = 0
    packages: tuple[Package, ...] = ()


async def survey(store: Store, profile: RuntimeProfile) -> Listed:
    """How the environment of a profile stands."""
    try:
        lock = read_lock(profile)
        interpreter = await find_interpreter(profile.name, profile.python)
    except EnvironmentFailed as error:
        return Listed(profile=profile.name, digest="", state="invalid", problem=error.detail)
    digest = environment_digest(profile, lock.data, interpreter)
    stale = stale_warning(profile)
    listed = Listed(profile=profile.name, digest=digest, state="absent", stale_lock=bool(stale), problem=stale, python=interpreter.version)
    return _as_it_stands(store, listed, lock.pins)


async def survey_overlay(store: Store, function: FunctionVersion, profile: RuntimeProfile) -> Listed:
    """How a function's own packages stand."""
    name = function.spec.name
    try:
        problem = problem_of(function, profile)
        lock = read_function_lock(function)
        digest = overlay_digest(await digest_of(profile), function.lock) if function.lock else ""
        python = (await find_interpreter(profile.name, profile.python)).version
    except EnvironmentFailed as error:
        return Listed(profile=profile.name, function=name, digest="", state="invalid", problem=error.detail)
    listed = Listed(
        profile=profile.name,
        function=name,
        digest=digest,
        state="absent",
        stale_lock=bool(problem),
        problem=problem and f"{name}: {problem}",
        python=python,
    )
    if digest and lock.is_empty:  # the profile has all of it
        return msgspec.structs.replace(listed, state="built")
    return _as_it_stands(store, listed, lock.pins)


def _as_it_stands(store: Store, listed: Listed, pins: Sequence[Pin]) -> Listed:
    built = store.read(listed.digest) if listed.digest else None
    if built is None:
        building = bool(listed.digest) and store.is_building(listed.digest)
        locked = {(plain_name(pin.name), pin.version) for pin in pins}
        return msgspec.structs.replace(listed, state="building" if building else "absent", packages=_packages(locked))
    return msgspec.structs.replace(
        listed, state="built", folder=str(store.folder / listed.digest), size_bytes=built.size_bytes, packages=_packages(_installed(built))
    )


def _installed(built: Environment) -> set[tuple[str, str]]:
    """(name, version) of what is installed, by the names of its metadata folders. Source: the binary distribution format, name-version.dist-info."""
    if built.overlay:
        folders = list(Path(built.overlay).glob("*.dist-info"))
    else:
        folders = list(Path(built.python).parents[1].glob("lib/python*/site-packages/*.dist-info"))
    parts = [folder.name.removesuffix(".dist-info").rpartition("-") for folder in folders]
    return {(plain_name(name), version) for name, _, version in parts}


def _packages(found: set[tuple[str, str]]) -> tuple[Package, ...]:
    return tuple(Package(name, version) for name, version in sorted(found))


def unused(store: Store, wanted: Sequence[Listed]) -> list[Listed]:
    """What stands here and none of these is."""
    known = {listed.digest for listed in wanted}
    found = []
    for digest in store.digests():
        if digest not in known:
            record = store.read(digest)
            size_bytes = record.size_bytes if record else 0
            profile = record.profile if record else ""
            folder = str(store.folder / digest)
            found.append(Listed(profile=profile, digest=digest, state="unused", folder=folder, size_bytes=size_bytes))
    return found
