"""Reading profile.toml: what is accepted, and what is said about what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from faas.environments.profile import load_profile, load_profiles, shipped_runtimes


def write_profile(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "profile.toml").write_text(text)
    return folder / name


def test_an_empty_file_is_a_valid_profile(tmp_path: Path) -> None:
    """Every key has a default, so that a first profile is one line of requirements."""
    folder = write_profile(tmp_path, "plain", "")

    profile = load_profile(folder)

    assert (profile.name, profile.folder, profile.python, profile.pool.max) == ("plain", str(folder), "", 8)


def test_people_write_durations_and_sizes(tmp_path: Path) -> None:
    """The units of the contract are the same everywhere."""
    folder = write_profile(tmp_path, "units", '[pool]\nkeep_alive = "10m"\n[limits]\nmemory = "512MiB"\n')

    profile = load_profile(folder)

    assert (profile.pool.keep_alive_s, profile.limits.memory_bytes) == (600.0, 512 * 2**20)


@pytest.mark.parametrize(
    ("text", "key", "advice"),
    [
        ('preloda = ["json"]', "preloda", 'did you mean "preload"?'),
        ("[pool]\nmaximum = 3", "pool.maximum", 'did you mean "max"?'),
        ("[limits]\nfoo = 3", "limits.foo", "known keys here: memory, cpus, pids"),
        ('name = "other"', "name", "the folder's name is the profile's"),
        ("[pool]\nmax = 0", "pool.max", "at least 1"),
        ("[pool]\nmax = 2\nmin_warm = 3", "pool.min_warm", "between 0 and pool.max (2)"),
        ("[pool]\nspares = -1", "pool.spares", "0 or more"),
        ('[pool]\nkeep_alive = "10 minutes"', "pool.keep_alive", 'write it like "250ms"'),
        ("[limits]\nmemory = 8", "limits.memory", 'write it like "64KiB"'),
        ("[limits]\ncpus = 0", "limits.cpus", "above 0"),
        ("[limits]\ncpus = nan", "limits.cpus", "above 0"),
        ('python = "3.10"', "python", "from 3.11 on"),
        ('python = "3.11.7"', "python", "minor version"),
        ("python = 3.11", "python", "expected `str`"),
        ('preload = ["os; import sys"]', "preload", "names of modules"),
        ('preload = "torch"', "preload", "expected `array`"),
        ('warmup = "import a; import b"', "warmup", "one statement"),
        ('warmup = "1 +"', "warmup", "one statement"),
        ('requirements = "../other/requirements.lock"', "requirements", "in the profile's folder"),
        ('requirements = "requirements.txt"', "requirements", "ends in .lock"),
        ('image = "faas-ai:1"', "image", "not supported yet"),
        ('[sandbox]\nnetwork = "none"', "sandbox", "not supported yet"),
        ('requirements = { cpu = "a.lock" }', "requirements", "not supported yet"),
        ("[pool", "", "is no TOML"),
    ],
)
def test_a_refusal_names_file_and_key_and_what_would_be_right(tmp_path: Path, text: str, key: str, advice: str) -> None:
    """Whoever wrote the file has nothing else to go by."""
    write_profile(tmp_path, "wrong", text)

    profiles, (problem,) = load_profiles(tmp_path)

    assert (profiles, problem.file, problem.key) == ({}, "wrong/profile.toml", key)
    assert advice in problem.problem


def test_a_broken_profile_does_not_hide_the_others(tmp_path: Path) -> None:
    """One author's mistake may not stop the functions of all."""
    write_profile(tmp_path, "broken", "what is this")
    write_profile(tmp_path, "whole", "")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".git").mkdir()
    write_profile(tmp_path, "Shouting", "")
    (tmp_path / "README.md").write_text("not a profile")

    profiles, problems = load_profiles(tmp_path)

    assert list(profiles) == ["whole"]
    assert [problem.file for problem in problems] == ["Shouting/profile.toml", "broken/profile.toml", "empty/profile.toml"]


def test_a_profile_that_is_no_regular_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    """Opening a named pipe would stop the node for good."""
    import os

    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "profile.toml")

    _, (problem,) = load_profiles(tmp_path)

    assert "no regular file" in problem.problem


def test_a_missing_folder_of_profiles_is_named(tmp_path: Path) -> None:
    """A mistyped --runtimes must not look like a node without profiles."""
    profiles, (problem,) = load_profiles(tmp_path / "runtimse")

    assert profiles == {}
    assert "runtimse" in str(problem)
    assert "--runtimes" in str(problem)


def test_the_profiles_that_come_with_the_package_load() -> None:
    """They leave `python` empty, so that any version that runs the node will do."""
    profiles, problems = load_profiles(shipped_runtimes())

    assert problems == []
    assert {name: profile.python for name, profile in profiles.items()} == {"ai": "", "standard": ""}
