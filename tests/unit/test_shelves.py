"""Folders for files of secrets: where they are made, who may enter, and what is left of them when a node was killed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.pool.shelves import Shelves, _tmpfs


@pytest.fixture
def shelves(tmp_path: Path) -> Iterator[Shelves]:
    (tmp_path / "run").mkdir()
    made = Shelves(tmp_path)
    yield made
    made.sweep()


def test_a_folder_is_this_users_alone_and_goes_with_what_is_in_it(shelves: Shelves) -> None:
    """The folder above it as well: its names say which workers there are."""
    shelf = shelves.of("w1")
    path = Path(shelf.make())
    (path / "hf_token").write_text("x")
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (path, path.parent)]

    shelf.remove()

    assert modes == [0o700, 0o700]
    assert not path.exists()


def test_folders_are_on_a_tmpfs_where_there_is_one(shelves: Shelves, tmp_path: Path) -> None:
    """Below the state folder they would be on a disk, and stay there when they are removed."""
    path = Path(shelves.of("w1").make())

    assert path.is_relative_to(_tmpfs()[0] if _tmpfs() else tmp_path / "run")


def test_nothing_is_made_where_nobody_has_secrets(shelves: Shelves, tmp_path: Path) -> None:
    """A node that is killed leaves its folder to the next start, and most have no secrets."""
    shelves.of("w1").remove()

    assert left(shelves) == []


def test_what_a_killed_node_left_goes_when_it_starts_again_and_what_is_others_stays(shelves: Shelves, tmp_path: Path) -> None:
    """Two nodes of one machine have a folder each; a link that somebody put there leads to nothing of ours."""
    path = Path(shelves.of("w1").make())
    (path / "hf_token").write_text("x")
    other = Shelves(tmp_path / "other")
    (tmp_path / "other" / "run").mkdir(parents=True)
    theirs = Path(other.of("w1").make())
    target = tmp_path / "target"
    target.mkdir()
    link = path.parent.with_name(f"{shelves._prefix}link")
    link.symlink_to(target)
    try:
        Shelves(tmp_path).sweep()

        assert not path.exists()
        assert theirs.is_dir()
        assert target.is_dir()
        assert link.is_symlink()
    finally:
        link.unlink()
        other.sweep()


def left(shelves: Shelves) -> list[Path]:
    return [path for place in (*_tmpfs(), shelves._else) for path in place.glob(f"{shelves._prefix}*") if os.path.isdir(path)]
