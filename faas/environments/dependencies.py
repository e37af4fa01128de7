"""A function's own dependencies: their lock, made against its profile's, and whether it still fits. Knows no folder of functions and builds nothing.

What the profile's lock pins holds for the function too, and is left out of its lock: it is there already. So a worker never
finds two versions of one package on its path.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faas.environments.failure import failed, of_function
from faas.environments.installer import InstallerFailed, find_sources, find_uv, plain_name
from faas.environments.interpreter import find_interpreter
from faas.environments.lockfile import LockFile, Pin, parse_lock, read_function_lock, read_lock, stray_line
from faas.environments.resolution import LockReport, Resolution, header, replace
from faas.errors import EnvironmentFailed
from faas.model import FunctionVersion, RuntimeProfile

_REQUIRED = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")


def dependencies_digest(function: FunctionVersion, profile_lock: bytes) -> str:
    """SHA-256 hex of all that a function's lock is made from."""
    digest = hashlib.sha256()
    for part in ("\n".join(function.spec.dependencies).encode(), profile_lock):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def problem_of(function: FunctionVersion, profile: RuntimeProfile) -> str:
    """Why the lock of a function's dependencies may not be used, as a sentence that says what to type; "" where it may.

    Raises EnvironmentFailed where the profile's lock, or the function's, cannot be read.
    """
    name = function.spec.name
    if not function.spec.dependencies:
        return ""
    if not function.lock:
        return f"not locked yet; type: faas lock {name}"
    lock = read_function_lock(function)
    if stray := stray_line(lock):
        return f"the lock has a line that `faas lock` does not write, {stray[:80]!r}; type: faas lock {name}"
    if lock.source_sha256 != dependencies_digest(function, read_lock(profile).data):
        return f"the lock was made from other dependencies, or against another lock of the profile {profile.name}; type: faas lock {name}"
    return ""


async def lock_function(function: FunctionVersion, profile: RuntimeProfile, path: Path) -> LockReport:
    """Resolve a function's dependencies afresh and write their lock to `path`. Raises EnvironmentFailed; an old lock is then as it was."""
    name = function.spec.name
    bound = read_lock(profile)
    uv = find_uv(name)
    interpreter = await find_interpreter(profile.name, profile.python)
    sources = await find_sources(bound.pins, interpreter)
    try:
        with tempfile.TemporaryDirectory(prefix="faas-lock-") as scratch:
            resolution = Resolution(profile=profile, interpreter=interpreter, sources=sources, uv=uv, scratch=Path(scratch))
            body = _without(await _compile(resolution, function, bound), bound.pins)
            size_bytes, unsized = await resolution.measure(body) if body else (0, ())
    except InstallerFailed as error:
        raise failed(error, of_function(function), interpreter, absent=sources.absent) from error
    made_from = f"its dependencies and the lock of the profile {profile.name}: change those"
    digest = dependencies_digest(function, bound.data)
    data = (header(name, made_from, interpreter, digest=digest, size_bytes=size_bytes, unsized=unsized) + body).encode()
    changed = await asyncio.to_thread(replace, path, data, name=name)
    return LockReport(
        profile=profile.name,
        function=name,
        path=str(path),
        packages=len({pin.name for pin in parse_lock(data).pins}),
        download_bytes=size_bytes,
        unsized=unsized,
        changed=changed,
    )


async def _compile(resolution: Resolution, function: FunctionVersion, bound: LockFile) -> str:
    """The lines for the dependencies and what they need, the profile's pins among them. Raises EnvironmentFailed where they contradict those."""
    requirements = "".join(f"{line}\n" for line in function.spec.dependencies)
    pins = "".join(f"{pin.name}=={pin.version}{f' ; {pin.marker}' if pin.marker else ''}\n" for pin in bound.pins)
    try:
        return await resolution.compile(requirements, pins)
    except InstallerFailed as error:
        try:
            free = parse_lock((await resolution.compile(requirements)).encode()).pins
        except InstallerFailed:
            raise error from None  # the profile has no part in it
        conflicts = contradictions(function, free, bound.pins, said=error.output)
        if not conflicts:
            raise
        sentence = (
            f"{'; '.join(conflicts)}; the profile {resolution.profile.name} has these for all of its functions: change the dependencies"
        )
        raise EnvironmentFailed(function.spec.name, sentence) from error


def contradictions(function: FunctionVersion, free: Sequence[Pin], bound: Sequence[Pin], *, said: str) -> list[str]:
    """Which packages the profile pins to another version than the dependencies need, in words that name both.

    `free` is what they resolve to without the profile. A package may be newer there and yet fit: what uv `said` names counts first.
    """
    locked = {plain_name(pin.name): pin for pin in bound}
    differing = [(pin, locked[name]) for pin in free if (name := plain_name(pin.name)) in locked and locked[name].version != pin.version]
    named = [(pin, other) for pin, other in differing if re.search(rf"\b{re.escape(plain_name(pin.name))}\b", plain_name(said))]
    written = {plain_name(found[1]): line for line in function.spec.dependencies if (found := _REQUIRED.match(line))}
    return [
        f"{written.get(plain_name(pin.name), f'{pin.name}=={pin.version}')} is asked for, but the profile locks {other.name}=={other.version}"
        for pin, other in named or differing
    ]


def _without(body: str, pins: Sequence[Pin]) -> str:
    """A lock's lines less those of packages that are pinned elsewhere."""
    present = {plain_name(pin.name) for pin in pins}
    blocks = re.split(r"^(?=\S)", body, flags=re.MULTILINE)
    return "".join(block for block in blocks if block.strip() and plain_name(block.partition("==")[0]) not in present)
