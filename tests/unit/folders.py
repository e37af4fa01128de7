"""Folders of functions as tests write them, and what reading them says."""

from __future__ import annotations

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


def read(root: Path) -> tuple[list[FunctionVersion], list[FunctionReport]]:
    return read_functions(root, PROFILES)


def only_error(root: Path) -> str:
    functions, invalid = read(root)
    assert functions == []
    (report,) = invalid
    return report.error
