"""A function's own packages for real: locked against its profile, built beside its environment, shared by those that ask for the same."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from faas.environments.build import Builder, BuildProgress, overlay_digest
from faas.environments.dependencies import dependencies_digest, lock_function, problem_of
from faas.environments.lock import lock
from faas.environments.lockfile import SOURCE_KEY, lock_path, parse_lock, read_lock, source_path
from faas.errors import EnvironmentFailed
from faas.model import FunctionSpec, FunctionVersion, RuntimeProfile


@pytest.fixture
async def profile(tmp_path: Path) -> RuntimeProfile:
    """One that pins six."""
    made = RuntimeProfile(name="small", folder=str(tmp_path))
    source_path(made).write_text("six==1.17.0\nmsgspec==0.20.0\n")
    await lock(made)
    return made


@pytest.fixture
async def builder(tmp_path: Path) -> AsyncIterator[Builder]:
    async with Builder(tmp_path / "environments") as builder:
        yield builder


def function(*dependencies: str, name: str = "thumb", lock: bytes = b"") -> FunctionVersion:
    return FunctionVersion(spec=FunctionSpec(name=name, dependencies=dependencies), version="v1", files=(), lock=lock)


async def locked(profile: RuntimeProfile, folder: Path, *dependencies: str, name: str = "thumb") -> FunctionVersion:
    """A function whose dependencies have been locked."""
    one = function(*dependencies, name=name)
    path = folder / f"{name}.lock"
    await lock_function(one, profile, path)
    return msgspec.structs.replace(one, lock=path.read_bytes())


def by_hand(profile: RuntimeProfile, dependency: str, pins: str) -> FunctionVersion:
    """A function whose lock says that it was made from this dependency and the profile's lock."""
    one = function(dependency)
    digest = dependencies_digest(one, read_lock(profile).data)
    return msgspec.structs.replace(one, lock=f"# {SOURCE_KEY}: {digest}\n{pins}".encode())


def imported(python: str, overlay: str, module: str) -> str:
    code = f"import sys; sys.path.insert(0, {overlay!r}); import {module}; print({module}.__file__)"
    return subprocess.check_output([python, "-I", "-c", code], text=True).strip()


# ---------------------------------------------------------------- the lock


async def test_a_lock_holds_what_the_profile_has_not_and_nothing_else(profile: RuntimeProfile, tmp_path: Path) -> None:
    """python-dateutil needs six, which the profile has: a second copy could be another version of it."""
    one = function("python-dateutil==2.9.0.post0")

    report = await lock_function(one, profile, tmp_path / "thumb.lock")

    data = (tmp_path / "thumb.lock").read_bytes()
    assert [(pin.name, pin.version) for pin in parse_lock(data).pins] == [("python-dateutil", "2.9.0.post0")]
    assert data.count(b"--hash=sha256:") == 2
    assert b"# Made by `faas lock thumb` from its dependencies and the lock of the profile small" in data
    assert (report.function, report.profile, report.packages, report.changed) == ("thumb", "small", 1, True)
    assert report.download_bytes == parse_lock(data).download_bytes > 100_000


async def test_a_lock_is_good_until_dependencies_or_the_profiles_lock_change(profile: RuntimeProfile, tmp_path: Path) -> None:
    """Either could bring two versions of one package together."""
    one = await locked(profile, tmp_path, "iniconfig==2.0.0")
    edited = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, dependencies=("iniconfig==2.1.0",)))
    good = problem_of(one, profile)
    source_path(profile).write_text("six==1.16.0\nmsgspec==0.20.0\n")
    await lock(profile)

    assert (good, problem_of(function("iniconfig"), profile)) == ("", "not locked yet; type: faas lock thumb")
    assert problem_of(edited, profile).endswith("type: faas lock thumb")
    assert "another lock of the profile small" in problem_of(one, profile)


@pytest.mark.parametrize(
    ("dependency", "asked"),
    [("six<1.17", "six<1.17"), ("six==1.16.0", "six==1.16.0"), ("python-dateutil==2.9.0.post0", "")],
    ids=["direct", "exact", "fits"],
)
async def test_a_dependency_that_contradicts_the_profile_names_both_versions(
    profile: RuntimeProfile, tmp_path: Path, dependency: str, asked: str
) -> None:
    """One process has one six: that of the profile is imported before the function is known."""
    one = function("iniconfig", dependency)
    if not asked:
        await lock_function(one, profile, tmp_path / "thumb.lock")
        return

    with pytest.raises(EnvironmentFailed) as caught:
        await lock_function(one, profile, tmp_path / "thumb.lock")

    assert f"{asked} is asked for, but the profile locks six==1.17.0" in caught.value.detail
    assert "the profile small" in caught.value.detail
    assert not (tmp_path / "thumb.lock").exists()


async def test_a_requirement_of_a_requirement_that_contradicts_the_profile_is_named(profile: RuntimeProfile, tmp_path: Path) -> None:
    """Its author has never heard of it."""
    source_path(profile).write_text("pluggy==1.5.0\nmsgspec==0.20.0\n")
    await lock(profile)

    with pytest.raises(EnvironmentFailed, match=r"pluggy==0\.13\.1 is asked for, but the profile locks pluggy==1\.5\.0"):
        await lock_function(function("pytest==5.4.3"), profile, tmp_path / "thumb.lock")


async def test_a_dependency_that_nobody_has_is_said_in_uvs_words(profile: RuntimeProfile, tmp_path: Path) -> None:
    """The profile has no part in it, and is not blamed."""
    with pytest.raises(EnvironmentFailed, match="its dependencies cannot be satisfied") as caught:
        await lock_function(function("six==1.17.0", "iniconfig==99.0"), profile, tmp_path / "thumb.lock")

    assert "profile" not in caught.value.detail


# ---------------------------------------------------------------- the overlay


async def test_an_overlay_holds_the_packages_of_the_function_compiled(builder: Builder, profile: RuntimeProfile, tmp_path: Path) -> None:
    """What is imported comes from there, and the profile's environment is as it was."""
    one = await locked(profile, tmp_path, "python-dateutil==2.9.0.post0")
    environment = await builder.ensure(profile)

    built = await builder.ensure_overlay(one, profile)

    assert imported(built.python, built.overlay, "dateutil").startswith(built.overlay)
    assert not imported(built.python, built.overlay, "six").startswith(built.overlay)
    assert list(Path(built.overlay).glob("dateutil/__pycache__/*.pyc"))
    assert built.python == environment.python
    assert (
        built.digest == overlay_digest(environment.digest, one.lock) == hashlib.sha256(environment.digest.encode() + one.lock).hexdigest()
    )
    assert built.size_bytes > 0
    assert await builder.find(profile) == environment


async def test_functions_with_one_lock_share_an_overlay(builder: Builder, profile: RuntimeProfile, tmp_path: Path) -> None:
    """Twenty functions that resize pictures hold one pillow on the disk."""
    one = await locked(profile, tmp_path, "iniconfig==2.0.0")
    first = await builder.ensure_overlay(one, profile)
    seen: list[BuildProgress] = []

    second = await builder.ensure_overlay(one, profile, seen.append)

    assert (second, seen) == (first, [])


async def test_dependencies_that_the_profile_has_all_of_need_no_overlay(builder: Builder, profile: RuntimeProfile, tmp_path: Path) -> None:
    """They are declared all the same: the profile may lose them one day."""
    one = await locked(profile, tmp_path, "six>=1.16")

    built = await builder.ensure_overlay(one, profile)

    environment = await builder.ensure(profile)
    assert (built.overlay, built.digest) == ("", overlay_digest(environment.digest, one.lock))
    assert one.lock.startswith(b"# Made by")


async def test_a_file_of_another_hash_is_refused(builder: Builder, profile: RuntimeProfile) -> None:
    """What was locked is what runs."""
    one = by_hand(profile, "iniconfig", f"iniconfig==2.0.0 --hash=sha256:{'0' * 64}\n")

    with pytest.raises(EnvironmentFailed, match="type: faas lock thumb"):
        await builder.ensure_overlay(one, profile)


def make_wheel(folder: Path, name: str, version: str) -> str:
    """A wheel that no package index has; its sha256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_an_overlay_comes_from_folders_of_wheels_where_they_have_it_all(
    builder: Builder, profile: RuntimeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without network they are all there is."""
    (tmp_path / "wheels").mkdir()
    digest = make_wheel(tmp_path / "wheels", "faas_test_of_overlays", "1.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    one = by_hand(profile, "faas-test-of-overlays", f"faas-test-of-overlays==1.0 --hash=sha256:{digest}\n")

    built = await builder.ensure_overlay(one, profile)

    assert imported(built.python, built.overlay, "faas_test_of_overlays").startswith(built.overlay)


async def test_a_lock_that_fits_no_more_is_not_built(builder: Builder, profile: RuntimeProfile, tmp_path: Path) -> None:
    """A node reads it when it starts, and builds perhaps hours later, from a profile that was locked anew meanwhile."""
    one = await locked(profile, tmp_path, "iniconfig==2.0.0")
    source_path(profile).write_text("six==1.16.0\nmsgspec==0.20.0\n")
    await lock(profile)

    with pytest.raises(EnvironmentFailed, match="type: faas lock thumb"):
        await builder.ensure_overlay(one, profile)


async def test_what_is_wrong_with_a_lock_is_said_of_its_function_and_no_other(
    builder: Builder, profile: RuntimeProfile, tmp_path: Path
) -> None:
    """A node asks of all of them when it starts."""
    good = await locked(profile, tmp_path, "iniconfig==2.0.0")
    garbage = function("iniconfig", name="garbage", lock=b"\xff\xfe")
    old = function("iniconfig", name="old", lock=good.lock)
    small = [msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, runtime="small")) for one in (good, garbage, old)]

    problems = await builder.problems(small, {"small": profile})

    assert set(problems) == {garbage.key, old.key}
    assert "is no UTF-8 text; type: faas lock garbage" in problems[garbage.key]
    assert problems[old.key].endswith("type: faas lock old")


async def test_a_build_that_was_killed_says_by_what(profile: RuntimeProfile, tmp_path: Path) -> None:
    """uv has no word for it, and nothing that it was told is wrong."""
    program = tmp_path / "uv"
    program.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    program.chmod(0o755)

    async with Builder(tmp_path / "environments", uv=str(program)) as builder:
        with pytest.raises(EnvironmentFailed, match="the build was killed by SIGKILL") as caught:
            await builder.ensure(profile)

    assert caught.value.interrupted


async def test_a_lock_edited_by_hand_runs_nothing_on_the_node(profile: RuntimeProfile, builder: Builder, tmp_path: Path) -> None:
    """Building from source runs the package's own code as the node, outside of every sandbox."""
    backend = f"open({str(tmp_path / 'ran')!r}, 'w')\nget_requires_for_build_wheel = lambda *a, **k: []\n"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "evil"\nversion = "1.0"\n'
    archive = tmp_path / "evil-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (("backend.py", backend), ("pyproject.toml", project), ("PKG-INFO", "Name: evil\nVersion: 1.0\n")):
            member = tarfile.TarInfo(f"evil-1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    by_url = by_hand(profile, "evil", f"evil @ {archive.as_uri()} --hash=sha256:{digest}\n")
    source_path(profile).write_text(f"evil @ {archive.as_uri()}\n")
    lock_path(profile).write_text(f"evil @ {archive.as_uri()} --hash=sha256:{digest}\n")

    with pytest.raises(EnvironmentFailed, match="nothing is built from source"):
        await builder.ensure(profile)
    with pytest.raises(EnvironmentFailed):
        await builder.ensure_overlay(by_url, profile)
    assert not (tmp_path / "ran").exists()
