"""`faas lock` and `faas build`: from requirements to a lock, from a lock to an environment."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import DEFAULT_STATE, Json, State, print_json
from faas.errors import ConfigInvalid, EnvironmentFailed, FaasError
from faas.units import format_size

if TYPE_CHECKING:
    from faas.environments.build import BuildProgress
    from faas.environments.resolution import LockReport
    from faas.model import Environment, RuntimeProfile

Runtimes = Annotated[Path | None, Parameter(help="Folder of the runtime profiles; default runtimes, else those that come with faas.")]
Profile = Annotated[str | None, Parameter(help="Only this profile; default all.")]


def lock(profile: Profile = None, *, runtimes: Runtimes = None, json: Json = False) -> int:
    """Resolve requirements afresh; an old lock stays as it was where that fails."""

    async def all_of_them() -> list[LockReport]:
        from faas.environments.lock import lock as resolve

        return [await resolve(found) for found in _profiles(profile, runtimes)]

    reports = asyncio.run(all_of_them())
    if json:
        print_json(msgspec.to_builtins(reports))
        return 0
    for report in reports:
        size = f", {format_size(report.download_bytes)} to download" if report.download_bytes else ""
        print(f"{report.profile}: {report.packages} packages{size}; {report.path} {'written' if report.changed else 'is as it was'}")
    return 0


def build(profile: Profile = None, *, runtimes: Runtimes = None, state: State = DEFAULT_STATE, json: Json = False) -> int:
    """Build what is absent; one that is built already is only named."""

    async def all_of_them() -> list[tuple[RuntimeProfile, Environment | EnvironmentFailed]]:
        from faas.environments.build import Builder

        built: list[tuple[RuntimeProfile, Environment | EnvironmentFailed]] = []
        async with Builder(state / "environments") as builder:
            for found in _profiles(profile, runtimes):
                try:
                    built.append((found, await builder.ensure(found, _say)))
                except EnvironmentFailed as error:
                    built.append((found, error))
        return built

    results = asyncio.run(all_of_them())
    failed = [error for _, error in results if isinstance(error, FaasError)]
    if json:
        print_json([_as_json(found, environment) for found, environment in results])
    for found, environment in results:
        if isinstance(environment, FaasError):
            print(f"faas: {environment}", file=sys.stderr)
        elif not json:
            print(f"{found.name}: {environment.digest[:16]} {format_size(environment.size_bytes)}; {environment.python}")
    return 1 if failed else 0


def _as_json(profile: RuntimeProfile, built: Environment | EnvironmentFailed) -> dict[str, object]:
    if isinstance(built, FaasError):
        return {"profile": profile.name, "state": "failed", "error": built.detail}
    return {"profile": profile.name, "state": "ready", **msgspec.to_builtins(built)}


def _say(progress: BuildProgress) -> None:
    print(describe(progress), file=sys.stderr, flush=True)


def describe(progress: BuildProgress) -> str:
    """A step of a build in one line: what, how large, how long so far."""
    size = f" ({format_size(progress.download_bytes)} to download)" if progress.download_bytes else ""
    what = f"packages of {progress.function}" if progress.function else f"environment of {progress.profile}"
    return f"{what}{size}: {progress.phase}, {progress.elapsed_s:.1f} s"


def _profiles(name: str | None, runtimes: Path | None) -> list[RuntimeProfile]:
    """The profile of that name, or all. Raises ConfigInvalid for an unknown one, and for any that is broken."""
    from faas.cli.node import runtimes_folder
    from faas.environments.profile import load_profiles

    folder = runtimes_folder(runtimes)
    profiles, broken = load_profiles(folder)
    for error in broken:
        if name is None or error.file.startswith(f"{name}/"):
            raise error
    if name is None:
        return list(profiles.values())
    if name not in profiles:
        raise ConfigInvalid(f"no profile {name} in {folder}; there are: {', '.join(sorted(profiles)) or 'none'}")
    return [profiles[name]]
