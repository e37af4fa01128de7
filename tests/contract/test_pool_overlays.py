"""A function with packages of its own on the pool: it waits for them as for its environment, and its failure is its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from test_pool import ENVIRONMENT, function, loaded, pool

from faas.errors import EnvironmentFailed
from faas.model import Environment, FunctionVersion, RuntimeProfile
from faas.pool import opening


def with_lock(name: str) -> FunctionVersion:
    return msgspec.structs.replace(function(name), lock=b"six==1.17.0")


class Builds:
    """A builder of overlays that fails as often as it is told to. `asked` is by whom."""

    def __init__(self, folder: Path, *failures: EnvironmentFailed) -> None:
        self._folder, self._failures = folder, list(failures)
        self.asked: list[str] = []

    async def __call__(self, function: FunctionVersion, profile: RuntimeProfile) -> Environment:
        self.asked.append(function.spec.name)
        if self._failures:
            raise self._failures.pop(0)
        return msgspec.structs.replace(ENVIRONMENT, digest="1" * 64, overlay=str(self._folder))


async def test_packages_are_built_once_and_their_digest_is_that_of_the_lease(tmp_path: Path) -> None:
    """It goes into every usage record: what ran is the profile's environment and the function's lock."""
    one, other, builds = with_lock("one"), function("other"), Builds(tmp_path)
    async with pool(tmp_path, one, other, build_overlay=builds) as workers:
        for _ in range(2):
            with await loaded(workers, one) as lease:
                assert lease.environment.digest == "1" * 64
        with await loaded(workers, other) as lease:
            assert lease.environment == ENVIRONMENT

        assert workers.load_message(one).overlay == str(tmp_path)
        assert workers.load_message(other).overlay == ""
    assert builds.asked == ["one"]


async def test_packages_that_cannot_be_built_fail_their_function_alone(tmp_path: Path) -> None:
    """The profile is whole: its other functions run, and each event of this one is told at once."""
    one, other, builds = with_lock("one"), function("other"), Builds(tmp_path, EnvironmentFailed("one", "no network"))
    async with pool(tmp_path, one, other, build_overlay=builds) as workers:
        for _ in range(2):
            with pytest.raises(EnvironmentFailed, match="no network"):
                await workers.acquire(one.key)
        with await loaded(workers, other) as lease:
            assert lease.environment == ENVIRONMENT
    assert builds.asked == ["one"]


async def test_a_failed_build_is_tried_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network comes back, and nobody starts a node anew for that."""
    monkeypatch.setattr(opening, "RETRY_AFTER_S", 0.0)
    one, builds = with_lock("one"), Builds(tmp_path, EnvironmentFailed("one", "no network"))
    async with pool(tmp_path, one, build_overlay=builds) as workers:
        with pytest.raises(EnvironmentFailed):
            await workers.acquire(one.key)
        with await loaded(workers, one) as lease:
            assert lease.environment.overlay == str(tmp_path)


async def test_a_build_that_was_killed_is_tried_again_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong with what it built."""
    monkeypatch.setattr(opening, "RETRY_INTERRUPTED_S", 0.0)
    one, builds = with_lock("one"), Builds(tmp_path, EnvironmentFailed("one", "killed", interrupted=True))
    async with pool(tmp_path, one, build_overlay=builds) as workers:
        with pytest.raises(EnvironmentFailed):
            await workers.acquire(one.key)
        with await loaded(workers, one):
            assert builds.asked == ["one", "one"]
