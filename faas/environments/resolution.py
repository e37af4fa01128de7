"""What all locks are made with: uv's resolution for all platforms at once, the size of what it found, and the file's first lines. Knows no requirement."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from faas.environments.installer import Sources, run_uv
from faas.environments.interpreter import Interpreter
from faas.environments.lockfile import DOWNLOAD_KEY, SOURCE_KEY, overrides_path
from faas.environments.profile import LOWEST_PYTHON
from faas.errors import EnvironmentFailed
from faas.model import RuntimeProfile

SIZED_PLATFORM = "x86_64-unknown-linux-gnu"
"""The download size in the header is that of one platform; this is the one that most nodes run on."""


class LockReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock holds. `download_bytes` is for Linux on x86_64; `unsized` names the packages whose size is not in it."""

    profile: str
    path: str
    packages: int
    download_bytes: int
    unsized: tuple[str, ...] = ()
    changed: bool
    function: str = ""  # whose dependencies these are; "" for the profile itself


@dataclass(slots=True, kw_only=True)
class Resolution:
    """Runs of uv over the same sources, in an empty folder `scratch`; they raise InstallerFailed. Of the profile its Python and its overrides count."""

    profile: RuntimeProfile
    interpreter: Interpreter
    sources: Sources
    uv: str
    scratch: Path

    async def compile(self, requirements: str, constraints: str = "") -> str:
        """The lock's lines. They hold for the profile's Python, or from the lowest that this package runs on, and for all platforms."""
        requirements_file = self._write("requirements.in", requirements)
        overrides = overrides_path(self.profile)
        lowest = self.profile.python or ".".join(map(str, LOWEST_PYTHON))
        output = self.scratch / "requirements.lock"
        await self._compile(
            *("--universal", "--python-version", lowest, "--generate-hashes", "--no-annotate"),
            *(("--override", str(overrides)) if overrides.exists() else ()),
            *(("--constraint", str(self._write("constraints.in", constraints))) if constraints else ()),
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
            (
                "pip",
                "compile",
                "--quiet",
                "--no-header",
                "--no-build",
                "--python",
                self.interpreter.executable,
                *self.sources.arguments,
                *arguments,
            ),
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


def header(name: str, source: str, interpreter: Interpreter, *, digest: str, size_bytes: int, unsized: tuple[str, ...]) -> str:
    """The first lines of a lock: what made it, from what (`source`, and that it is to be changed), and how much there is to fetch."""
    without = f", without {' '.join(unsized)}" if unsized else ""
    return (
        f"# Made by `faas lock {name}` from {source} and type it again.\n"
        f"# {SOURCE_KEY}: {digest}\n"
        f"# {DOWNLOAD_KEY}: {size_bytes} (Linux on x86_64, Python {interpreter.version}{without})\n"
    )


def replace(path: Path, data: bytes, *, name: str) -> bool:
    """Write a lock whole; returns whether it changed. Raises EnvironmentFailed of `name`."""
    try:
        if path.exists() and path.read_bytes() == data:
            return False
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise EnvironmentFailed(name, f"{path} cannot be written: {error.strerror}") from error
    return True
