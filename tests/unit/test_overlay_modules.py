"""Which modules an overlay brings, and which of them are a conflict."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from faas.worker.overlay import Conflict, modules_in, put_on_path


def test_packages_modules_and_extensions_count_and_metadata_does_not(tmp_path: Path) -> None:
    """What else lies in a folder of packages cannot be imported."""
    for name in ("pkg", "pkg-1.0.dist-info", "bin", "__pycache__"):
        (tmp_path / name).mkdir()
    for name in ("single.py", "_native.cpython-311-x86_64-linux-gnu.so", "stable.abi3.so", ".lock", "README.md", "notes"):
        (tmp_path / name).touch()

    assert modules_in(str(tmp_path)) == ["__pycache__", "_native", "bin", "pkg", "single", "stable"]


@pytest.mark.parametrize("name", ["json", "faas_test_part"])
def test_the_standard_library_and_parts_of_a_namespace_are_no_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The one wins as it would in a fresh interpreter, the other is looked for in all places."""
    monkeypatch.setattr(sys, "path", ["/lib/python3", "/lib/python3/site-packages"])
    monkeypatch.setitem(sys.modules, "faas_test_part", types.ModuleType("faas_test_part"))  # a namespace package has no file
    (tmp_path / name).mkdir()

    put_on_path("/code", str(tmp_path))

    assert sys.path == ["/code", "/lib/python3", str(tmp_path), "/lib/python3/site-packages"]


def test_a_module_with_a_file_elsewhere_is_a_conflict_and_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has to reach the node, from a process whose imports still work."""
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    (tmp_path / "pytest").mkdir()

    with pytest.raises(Conflict, match=r"bring a module pytest .* has imported pytest from .* already"):
        put_on_path("/code", str(tmp_path))

    assert sys.path == before
