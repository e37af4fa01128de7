"""What a function may depend on, and what becomes of its lock."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import PROFILES, folder, read

from faas.registry.checks import is_requirement
from faas.registry.spec import read_functions


@pytest.mark.parametrize(
    "text",
    ["pillow", "pillow>=11", "a.b-c_d[x, y] >=1, <2 ; python_version < '3.12'", "torch==2.9.1+cpu", "a (>=1,!=1.5.*)", "a~=1.2", "a===1"],
)
def test_what_packages_write_is_a_requirement(text: str) -> None:
    """The forms of a package index, with whatever spaces."""
    assert is_requirement(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-r x",
        "--index-url=x",
        "a @ file:///x",
        "./a",
        "a/b",
        "a\nb",
        "a # b",
        "a>",
        "a>=",
        "a b",
        "a;",
        "é",
        "a" * 501,
        "a --hash=x",
    ],
)
def test_what_would_reach_elsewhere_is_no_requirement(text: str) -> None:
    """A lock is made of a package index alone; an option could name another."""
    assert not is_requirement(text)


def test_dependencies_are_taken_with_their_lock(tmp_path: Path) -> None:
    """The lock is a part of the version, and of what is installed; it is no source."""
    made = folder(tmp_path, "fn", 'dependencies = ["pillow>=11"]')
    (made / "requirements.lock").write_text("pillow==11.0 --hash=sha256:00\n")
    ((first,), _) = read(tmp_path)
    (made / "requirements.lock").write_text("pillow==11.1 --hash=sha256:00\n")
    ((second,), _) = read(tmp_path)

    assert first.spec.dependencies == ("pillow>=11",)
    assert first.lock == b"pillow==11.0 --hash=sha256:00\n"
    assert [file.path for file in first.files] == ["handler.py"]
    assert first.version != second.version


def test_whoever_makes_a_lock_reads_what_has_none_yet(tmp_path: Path) -> None:
    """Else nobody could make the first one."""
    folder(tmp_path, "fn", 'dependencies = ["pillow>=11"]')
    ((function,), invalid, _) = read_functions(tmp_path, PROFILES, locked=False)

    assert invalid == []
    assert function.lock == b""


def test_a_lock_without_dependencies_is_nobodys(tmp_path: Path) -> None:
    """It was left behind; installing it would bring back what was taken out."""
    made = folder(tmp_path, "fn")
    ((before,), _) = read(tmp_path)
    (made / "requirements.lock").write_text("pillow==11.0\n")
    ((after,), _) = read(tmp_path)

    assert after.lock == b""
    assert before.version == after.version
