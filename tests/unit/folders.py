"""Folders of functions as tests write them, and what reading them says."""

from __future__ import annotations

import re
from pathlib import Path

from faas.model import FunctionReport, FunctionVersion, ProfileLimits, RuntimeProfile
from faas.registry.spec import read_functions
from faas.units import Size

HANDLER = "def handle(event, ctx):\n    return event\n"
PROFILES = {"standard": RuntimeProfile(name="standard", limits=ProfileLimits(memory_bytes=Size(2**30), cpus=2, pids=64))}


def folder(root: Path, name: str, spec: str | bytes = "", handler: str | bytes = HANDLER) -> Path:
    made = root / name
    made.mkdir()
    (made / "function.toml").write_bytes(spec if isinstance(spec, bytes) else spec.encode())
    (made / "handler.py").write_bytes(handler if isinstance(handler, bytes) else handler.encode())
    return made


def single(root: Path, name: str, block: str = "", code: str = HANDLER) -> Path:
    """A function in one file: a line of the block for each line of `block`."""
    made = root / f"{name}.py"
    made.write_text("".join(f"{line}\n" for line in ["# /// faas", *(f"# {line}" for line in block.splitlines()), "# ///"]) + code)
    return made


def read(root: Path) -> tuple[list[FunctionVersion], list[FunctionReport]]:
    functions, invalid, _ = read_functions(root, PROFILES)
    return functions, invalid


def only_error(root: Path) -> str:
    functions, invalid = read(root)
    assert functions == []
    (report,) = invalid
    return report.error


def without_line(error: str) -> str:
    """An error without the number of its line, where it has one."""
    return re.sub(r": line \d+: ", ": ", error, count=1)
