"""Reads the files beside a profile that say what its environment holds: `requirements.in`, its overrides, `requirements.lock`. Runs nothing."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from faas.errors import EnvironmentFailed
from faas.model import FunctionVersion, RuntimeProfile

WORKER_REQUIREMENTS = ("msgspec>=0.19",)
"""What `faas.worker` itself imports, beside the standard library: part of every environment."""

OVERRIDES_FILE = "overrides.in"
SOURCE_KEY = "source-sha256"
DOWNLOAD_KEY = "download-bytes"

_HEADER = re.compile(r"^# (?P<key>[a-z0-9-]+): (?P<value>\S+)", re.MULTILINE)
_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)\s*(?:;\s*(?P<marker>[^\\\n]*?))?\s*(?:--hash=\S+\s*?)*\\?$",
    re.MULTILINE,
)
_LOCKED = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*==[^\s;\\]+(?:\s*;(?:(?!--)[^\\])*?)?(?:\s+--hash=sha256:[0-9a-f]{64})+\s*",
    re.ASCII,
)


class Pin(msgspec.Struct, frozen=True):
    """One line of a lock: an exact version, and the marker that says where it counts ("": everywhere)."""

    name: str
    version: str
    marker: str = ""


class LockFile(msgspec.Struct, frozen=True, kw_only=True):
    """A lock as it stands. `source_sha256` is that of the requirements it was made from; `download_bytes` 0 where the header has none."""

    data: bytes
    pins: tuple[Pin, ...]
    source_sha256: str = ""
    download_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to install: comments alone."""
        return all(not line.strip() or line.startswith(b"#") for line in self.data.splitlines())


def lock_path(profile: RuntimeProfile) -> Path:
    return Path(profile.folder, profile.requirements)


def source_path(profile: RuntimeProfile) -> Path:
    """`requirements.lock` is made from `requirements.in`."""
    return lock_path(profile).with_suffix(".in")


def overrides_path(profile: RuntimeProfile) -> Path:
    return Path(profile.folder, OVERRIDES_FILE)


def read_lock(profile: RuntimeProfile) -> LockFile:
    """The lock of a profile. Raises EnvironmentFailed where it is missing or no text."""
    path = lock_path(profile)
    try:
        data = path.read_bytes()
        return parse_lock(data)
    except UnicodeDecodeError as error:
        raise EnvironmentFailed(profile.name, f"{path.name} is no UTF-8 text; type: faas lock {profile.name}") from error
    except OSError as error:
        raise EnvironmentFailed(profile.name, f"{path.name} cannot be read ({error.strerror}); type: faas lock {profile.name}") from error


def read_function_lock(function: FunctionVersion) -> LockFile:
    """The lock of a function's own dependencies. Raises EnvironmentFailed where it is no text."""
    try:
        return parse_lock(function.lock)
    except UnicodeDecodeError as error:
        raise EnvironmentFailed(function.spec.name, f"its lock is no UTF-8 text; type: faas lock {function.spec.name}") from error


def parse_lock(data: bytes) -> LockFile:
    """Raises UnicodeDecodeError."""
    text = data.decode()
    header = {match["key"]: match["value"] for match in _HEADER.finditer(text)}
    size = header.get(DOWNLOAD_KEY, "")
    return LockFile(
        data=data,
        pins=tuple(Pin(match["name"], match["version"], match["marker"] or "") for match in _PIN.finditer(text)),
        source_sha256=header.get(SOURCE_KEY, ""),
        download_bytes=int(size) if size.isdecimal() else 0,
    )


def stray_line(lock: LockFile) -> str:
    """The first line that is no exact version with its hashes: an option, a URL or a path, which whoever edits a lock could have a node follow."""
    lines = re.sub(rb"\\\r?\n", b" ", lock.data).decode().splitlines()
    return next((line for line in lines if line.strip() and not line.startswith("#") and not _LOCKED.fullmatch(line)), "")


def source_digest(profile: RuntimeProfile) -> str:
    """SHA-256 hex of all that a lock is made from. Raises OSError where `requirements.in` cannot be read."""
    digest = hashlib.sha256()
    overrides = overrides_path(profile)
    parts = (
        source_path(profile).read_bytes(),
        overrides.read_bytes() if overrides.exists() else b"",
        "\n".join(WORKER_REQUIREMENTS).encode(),
    )
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)  # lengths, so that no text can move from one part to the next unseen
    return digest.hexdigest()


def is_stale(profile: RuntimeProfile) -> bool:
    """Whether the requirements were edited after the lock was made. False where there are none to compare. Raises EnvironmentFailed without a lock."""
    lock = read_lock(profile)
    try:
        return lock.source_sha256 != source_digest(profile)
    except OSError:
        return False


def stale_warning(profile: RuntimeProfile) -> str:
    """A sentence where a lock is stale, "" where it is not or there is none to compare."""
    try:
        stale = is_stale(profile)
    except EnvironmentFailed:
        return ""
    file = source_path(profile).name
    return f"{profile.name}: {lock_path(profile).name} does not match {file} any more; type: faas lock {profile.name}" if stale else ""
