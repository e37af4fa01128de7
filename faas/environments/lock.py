"""Makes `requirements.lock` from `requirements.in`: exact versions with the hashes of all their files, for every platform at once. Builds nothing.

Three things go in besides what a package index says: what `faas.worker` imports, `overrides.in` beside the requirements
(uv's overrides: a requirement of a requirement replaced, or left out by a marker that never holds), and hashes written behind
a requirement (`name==1+cpu --hash=sha256:…`), which are added to those found, for files that this machine cannot see.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from faas.environments.failure import failed, of_profile
from faas.environments.installer import InstallerFailed, Sources, find_sources, find_uv, plain_name, run_uv
from faas.environments.interpreter import Interpreter, find_interpreter
from faas.environments.lockfile import (
    DOWNLOAD_KEY,
    SOURCE_KEY,
    WORKER_REQUIREMENTS,
    Pin,
    lock_path,
    overrides_path,
    parse_lock,
    source_digest,
    source_path,
)
from faas.environments.profile import LOWEST_PYTHON
from faas.errors import EnvironmentFailed
from faas.model import RuntimeProfile

SIZED_PLATFORM = "x86_64-unknown-linux-gnu"
"""The download size in the header is that of one platform; this is the one that most nodes run on."""

_HASH = re.compile(r"\s*--hash[= ](sha256:[0-9a-f]{64})")
_LOCAL_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)\s*==\s*([^\s;]+)")
_LOCKED_LINE = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)")


class LockReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock holds. `download_bytes` is for Linux on x86_64; `unsized` names the packages whose size is not in it."""

    profile: str
    path: str
    packages: int
    download_bytes: int
    unsized: tuple[str, ...] = ()
    changed: bool


class Source(msgspec.Struct, frozen=True):
    """`requirements.in` as uv takes it, and the hashes that were written in it, by (name, version)."""

    text: str
    hashes: Mapping[tuple[str, str], tuple[str, ...]]
    local: tuple[Pin, ...]


def parse_source(text: str) -> Source:
    """Take the hashes out of requirements, and find the versions with a local part, which no package index has."""
    lines: list[str] = []
    hashes: dict[tuple[str, str], tuple[str, ...]] = {}
    local: list[Pin] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        requirement = _HASH.sub("", line)
        lines.append(requirement)
        pin = _LOCAL_PIN.match(requirement.strip())
        if pin is None:
            continue
        if written := tuple(_HASH.findall(line)):
            hashes[plain_name(pin[1]), pin[2]] = written
        if "+" in pin[2]:
            local.append(Pin(pin[1], pin[2]))
    return Source("\n".join(lines) + "\n", hashes, tuple(local))


async def lock(profile: RuntimeProfile) -> LockReport:
    """Resolve a profile's requirements afresh and replace its lock. Raises EnvironmentFailed; the old lock is then as it was."""
    try:
        source = parse_source(source_path(profile).read_text(encoding="utf-8"))
        digest = source_digest(profile)
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFailed(
            profile.name, f"{source_path(profile).name} cannot be read ({error}); write one requirement a line into it"
        ) from error
    uv = find_uv(profile.name)
    interpreter = await find_interpreter(profile.name, profile.python)
    sources = await find_sources(source.local, interpreter)
    try:
        with tempfile.TemporaryDirectory(prefix="faas-lock-") as scratch:
            resolution = _Resolution(profile=profile, interpreter=interpreter, sources=sources, uv=uv, scratch=Path(scratch))
            body = _with_hashes(profile, await resolution.compile(source.text), source)
            size_bytes, unsized = await resolution.measure(body)
    except InstallerFailed as error:
        raise failed(error, of_profile(profile), interpreter, absent=sources.absent) from error
    data = (_header(profile, interpreter, digest=digest, size_bytes=size_bytes, unsized=unsized) + body).encode()
    changed = await asyncio.to_thread(_replace, profile, data)
    return LockReport(
        profile=profile.name,
        path=str(lock_path(profile)),
        packages=len({pin.name for pin in parse_lock(data).pins}),
        download_bytes=size_bytes,
        unsized=unsized,
        changed=changed,
    )


@dataclass(slots=True, kw_only=True)
class _Resolution:
    """Two runs of uv over the same sources, in an empty folder `scratch`."""

    profile: RuntimeProfile
    interpreter: Interpreter
    sources: Sources
    uv: str
    scratch: Path

    async def compile(self, requirements: str) -> str:
        """The lock's lines. They hold for the profile's Python, or from the lowest that this package runs on, and for all platforms."""
        requirements_file = self._write("requirements.in", requirements + "\n".join(WORKER_REQUIREMENTS) + "\n")
        overrides = overrides_path(self.profile)
        lowest = self.profile.python or ".".join(map(str, LOWEST_PYTHON))
        output = self.scratch / "requirements.lock"
        await self._compile(
            *("--universal", "--python-version", lowest, "--generate-hashes", "--no-annotate"),
            *(("--override", str(overrides)) if overrides.exists() else ()),
            *(str(requirements_file), "-o", str(output)),
        )
        return output.read_text(encoding="utf-8")

    async def measure(self, body: str) -> tuple[int, tuple[str, ...]]:
        """Bytes to download on SIZED_PLATFORM, and the packages whose size nobody tells. Source: file sizes of PEP 751 (pylock.toml)."""
        pins = re.sub(r"\s*\\$", "", re.sub(r"^\s+--hash=.*\n?", "", body, flags=re.MULTILINE), flags=re.MULTILINE)
        pins_file, output = self._write("pins.in", pins), self.scratch / "pylock.toml"
        await self._compile(
            *("--no-deps", "--python-platform", SIZED_PLATFORM, "--python-version", self.interpreter.version),
            *("--format", "pylock.toml", str(pins_file), "-o", str(output)),
        )
        sizes = {
            package["name"]: _download_bytes(package) for package in tomllib.loads(output.read_text(encoding="utf-8")).get("packages", ())
        }
        return sum(size or 0 for size in sizes.values()), tuple(name for name, size in sizes.items() if size is None)

    async def _compile(self, *arguments: str) -> None:
        await run_uv(
            self.uv,
            ("pip", "compile", "--quiet", "--no-header", "--python", self.interpreter.executable, *self.sources.arguments, *arguments),
            folder=self.scratch,
        )

    def _write(self, name: str, text: str) -> Path:
        path = self.scratch / name
        path.write_text(text, encoding="utf-8")
        return path


def _download_bytes(package: Mapping[str, object]) -> int | None:
    """The size of the file that would be fetched for one package of a pylock.toml: its first wheel, else its source; None where unknown."""
    wheels = package.get("wheels")
    file = wheels[0] if isinstance(wheels, list) and wheels else package.get("sdist")
    if not isinstance(file, dict):
        return None
    if isinstance(size := file.get("size"), int):
        return size
    url = urlsplit(str(file.get("url", "")))
    path = file.get("path") or (unquote(url.path) if url.scheme == "file" else "")
    try:
        return os.stat(str(path)).st_size if path else None
    except OSError:
        return None


def _with_hashes(profile: RuntimeProfile, body: str, source: Source) -> str:
    """The lock's lines with the hashes that were written in the requirements added. Raises EnvironmentFailed for some of a version not in it."""
    missing = dict(source.hashes)
    blocks: list[str] = []
    for block in re.split(r"^(?=\S)", body, flags=re.MULTILINE):
        pin = _LOCKED_LINE.match(block)
        written = missing.pop((plain_name(pin[1]), pin[2]), ()) if pin is not None else ()
        if not written:
            blocks.append(block)
            continue
        first, *_ = block.splitlines()
        hashes = sorted({*written, *_HASH.findall(block)})
        blocks.append(" \\\n".join([first.rstrip(" \\"), *(f"    --hash={value}" for value in hashes)]) + "\n")
    if missing:
        named = ", ".join(f"{name}=={version}" for name, version in missing)
        raise EnvironmentFailed(
            profile.name, f"{source_path(profile).name} gives hashes for {named}, which is not what was resolved; correct its version"
        )
    return "".join(blocks)


def _header(profile: RuntimeProfile, interpreter: Interpreter, *, digest: str, size_bytes: int, unsized: tuple[str, ...]) -> str:
    without = f", without {' '.join(unsized)}" if unsized else ""
    return (
        f"# Made by `faas lock {profile.name}` from {source_path(profile).name}: edit that file and type it again.\n"
        f"# {SOURCE_KEY}: {digest}\n"
        f"# {DOWNLOAD_KEY}: {size_bytes} (Linux on x86_64, Python {interpreter.version}{without})\n"
    )


def _replace(profile: RuntimeProfile, data: bytes) -> bool:
    """Write the lock whole; returns whether it changed."""
    path = lock_path(profile)
    try:
        if path.exists() and path.read_bytes() == data:
            return False
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise EnvironmentFailed(profile.name, f"{path} cannot be written: {error.strerror}") from error
    return True
