"""`faas lock` and `faas build`: from requirements to a lock, from a lock to an environment, of profiles and of single functions."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import DEFAULT_STATE, Folders, Json, State, print_json, say_error
from faas.cli.targets import Targets, find_targets
from faas.errors import ConfigInvalid, EnvironmentFailed, SpecInvalid
from faas.units import format_size

if TYPE_CHECKING:
    from faas.environments.build import BuildProgress
    from faas.environments.resolution import LockReport
    from faas.model import Environment

Name = Annotated[
    str | None, Parameter(help="Only this profile or function; default all. Where it is both: runtimes/NAME or functions/NAME.")
]


def lock(name: Name = None, *, folders: Folders = Folders(), json: Json = False) -> int:  # noqa: B008  # frozen
    """Resolve requirements afresh; an old lock stays as it was where that fails."""
    targets = find_targets(name, folders, verb="lock")
    if name is not None:
        for function in targets.functions:
            if not function.spec.dependencies:
                raise ConfigInvalid(
                    f'{function.file}: dependencies: there are none; write some into it, like dependencies = ["pillow>=11"]'
                )
    for warning in _stale_below(targets):
        print(f"faas: {warning}", file=sys.stderr)
    reports, failed = asyncio.run(_lock(targets))
    if json:
        print_json(msgspec.to_builtins(reports))
    for report in reports if not json else []:
        size = f", {format_size(report.download_bytes)} to download" if report.download_bytes else ""
        beside = f" beside those of {report.profile}" if report.function else ""
        changed = "written" if report.changed else "is as it was"
        print(
            f"{report.function or report.profile}: {report.packages} package{'' if report.packages == 1 else 's'}{beside}{size}; {report.path} {changed}"
        )
    if targets.dependents and any(report.changed for report in reports):
        names = [function.spec.name for function in targets.dependents]
        advice = ", ".join(f"faas lock {one}" for one in names)
        print(f"faas: {', '.join(names)}: locked against this profile as it was; type: {advice}", file=sys.stderr)
    return _say_what_failed(failed, _invalid(targets), json=json)


def _stale_below(targets: Targets) -> list[str]:
    """Of the profiles that functions are locked against and that are not locked anew before: which ought to be."""
    from faas.environments.lockfile import stale_warning

    bound = {function.spec.runtime: targets.profile_of(function) for function in targets.functions}
    others = [profile for profile in bound.values() if profile not in targets.profiles]
    return [warning for profile in others if (warning := stale_warning(profile))]


async def _lock(targets: Targets) -> tuple[list[LockReport], list[str]]:
    """Profiles first: the locks of functions are made against theirs. What fails stops no other."""
    from faas.environments.dependencies import lock_function
    from faas.environments.lock import lock as resolve
    from faas.registry.spec import lock_file

    reports: list[LockReport] = []
    failed: list[str] = []
    for profile in targets.profiles:
        try:
            reports.append(await resolve(profile))
        except EnvironmentFailed as error:
            failed.append(str(error))
    for function in targets.functions:
        try:
            reports.append(await lock_function(function, targets.profile_of(function), lock_file(targets.folder, function)))
        except EnvironmentFailed as error:
            failed.append(str(error))
    return reports, failed


@dataclass(slots=True, frozen=True, kw_only=True)
class Built:
    """What came of one build. `function` is "" for a profile's environment; `warning` is a sentence about its lock."""

    profile: str
    function: str = ""
    environment: Environment | EnvironmentFailed
    warning: str = ""

    def as_json(self) -> dict[str, object]:
        head = {"profile": self.profile, **({"function": self.function} if self.function else {})}
        warning = {"warning": self.warning} if self.warning else {}
        if isinstance(self.environment, EnvironmentFailed):
            return {**head, "state": "failed", "error": self.environment.detail, **warning}
        return {**head, "state": "ready", **msgspec.to_builtins(self.environment), **warning}


def build(name: Name = None, *, folders: Folders = Folders(), state: State = DEFAULT_STATE, json: Json = False) -> int:  # noqa: B008  # frozen
    """Build what is absent; what is built already is only named."""
    targets = find_targets(name, folders, verb="build")
    results = asyncio.run(_build(targets, state))
    if json:
        print_json([built.as_json() for built in results])
    failed = []
    for built in results:
        if built.warning:
            print(f"faas: {built.warning}", file=sys.stderr)
        if isinstance(built.environment, EnvironmentFailed):
            failed.append(str(built.environment))
        elif not json:
            environment = built.environment
            where = environment.overlay or environment.python
            print(f"{built.function or built.profile}: {environment.digest[:16]} {format_size(environment.size_bytes)}; {where}")
    return _say_what_failed(failed, _invalid(targets), json=json)


async def _build(targets: Targets, state: State) -> list[Built]:
    from faas.environments.build import Builder
    from faas.environments.lockfile import stale_warning

    built: list[Built] = []
    async with Builder(state / "environments") as builder:
        for profile in targets.profiles:
            try:
                environment: Environment | EnvironmentFailed = await builder.ensure(profile, _say)
            except EnvironmentFailed as error:
                environment = error
            built.append(Built(profile=profile.name, environment=environment, warning=stale_warning(profile)))
        for function in targets.functions:
            name, profile = function.spec.name, targets.profile_of(function)
            try:
                environment = await builder.ensure_overlay(function, profile, _say)
            except EnvironmentFailed as error:
                environment = error
            built.append(Built(profile=profile.name, function=name, environment=environment))
    return built


def _invalid(targets: Targets) -> list[str]:
    return [report.error for report in targets.invalid]


def _say_what_failed(failed: list[str], invalid: list[str], *, json: bool) -> int:
    """Each on standard error; the exit code."""
    for code, sentences in ((EnvironmentFailed.code, failed), (SpecInvalid.code, invalid)):
        for sentence in sentences:
            say_error(code, sentence, json=json)
    return 1 if failed or invalid else 0


def _say(progress: BuildProgress) -> None:
    print(describe(progress), file=sys.stderr, flush=True)


def describe(progress: BuildProgress) -> str:
    """A step of a build in one line: what, how large, how long so far."""
    size = f" ({format_size(progress.download_bytes)} to download)" if progress.download_bytes else ""
    what = f"packages of {progress.function}" if progress.function else f"environment of {progress.profile}"
    return f"{what}{size}: {progress.phase}, {progress.elapsed_s:.1f} s"
