"""Real resolutions of small requirements."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faas.environments.lock import lock
from faas.environments.lockfile import is_stale, lock_path, overrides_path, read_lock, source_path
from faas.errors import EnvironmentFailed
from faas.model import RuntimeProfile


@pytest.fixture
def profile(tmp_path: Path) -> RuntimeProfile:
    return RuntimeProfile(name="small", folder=str(tmp_path))


async def test_a_lock_adds_what_the_worker_needs_and_pins_all_by_hash(profile: RuntimeProfile) -> None:
    """An author lists what the functions need and nothing of ours."""
    source_path(profile).write_text("# nothing\nsix==1.17.0\n")

    report = await lock(profile)

    text = read_lock(profile).data.decode()
    assert {pin.name for pin in read_lock(profile).pins} == {"msgspec", "six"}
    assert (report.packages, report.changed, report.unsized) == (2, True, ())
    assert report.download_bytes == read_lock(profile).download_bytes > 100_000
    assert not is_stale(profile)
    assert str(profile.folder) not in text
    assert "http" not in text
    assert len(re.findall("--hash=sha256:", text)) > 20  # msgspec's wheels for all platforms


async def test_locking_again_changes_nothing(profile: RuntimeProfile) -> None:
    """Else the digest would change, and everything be built anew."""
    source_path(profile).write_text("six==1.17.0\nmsgspec==0.20.0\n")
    await lock(profile)
    before = lock_path(profile).read_bytes()

    report = await lock(profile)

    assert (report.changed, lock_path(profile).read_bytes()) == (False, before)


async def test_hashes_written_behind_a_requirement_are_added(profile: RuntimeProfile) -> None:
    """A build of another Python or processor is often on no index that this machine reaches."""
    extra = "0" * 64
    source_path(profile).write_text(f"six==1.17.0 \\\n    --hash=sha256:{extra}\n")

    await lock(profile)

    block = lock_path(profile).read_text().partition("six==1.17.0")[2]
    assert extra in block
    assert block.count("--hash=sha256:") == 3  # its wheel, its source, and the one written


async def test_hashes_of_a_version_that_was_not_resolved_are_refused(profile: RuntimeProfile) -> None:
    """They were forgotten at an upgrade, and would never be checked."""
    source_path(profile).write_text(
        f"six>=1.16\nmsgspec==0.20.0 ; sys_platform == 'win32' --hash=sha256:{'0' * 64}\nmsgspec==0.20 ; sys_platform != 'win32' --hash=sha256:{'1' * 64}\n"
    )

    with pytest.raises(EnvironmentFailed, match=r"gives hashes for msgspec==0\.20, which"):
        await lock(profile)


async def test_an_override_leaves_a_requirement_out(profile: RuntimeProfile) -> None:
    """Some wheels ask for a gigabyte that their files do not need."""
    source_path(profile).write_text("python-dateutil==2.9.0.post0\n")
    overrides_path(profile).write_text("six ; python_version < '0'\n")

    await lock(profile)

    assert {pin.name for pin in read_lock(profile).pins} == {"msgspec", "python-dateutil"}


async def test_what_cannot_be_resolved_leaves_the_old_lock(profile: RuntimeProfile) -> None:
    """A typing error must not take the profile's functions down."""
    lock_path(profile).write_text("old")
    source_path(profile).write_text("six==99.0\n")

    with pytest.raises(EnvironmentFailed, match="six"):
        await lock(profile)

    assert lock_path(profile).read_text() == "old"


async def test_missing_requirements_are_named(profile: RuntimeProfile) -> None:
    """They are the one file that an author has to write."""
    with pytest.raises(EnvironmentFailed, match=r"requirements\.in cannot be read"):
        await lock(profile)
