"""What `faas lock`, `faas build` and `faas env` are told to work on: profiles and functions by name. Reads folders; makes and builds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faas.cli.options import Folders
from faas.errors import ConfigInvalid

if TYPE_CHECKING:
    from faas.model import FunctionReport, FunctionVersion, RuntimeProfile

KINDS = ("runtimes", "functions")
"""Before a name and a slash: which of the two is meant."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Targets:
    """`profiles` and `functions` are what is meant, `known` all profiles; `invalid` are the functions that cannot be read.

    `dependents` are functions whose locks are made against one of `profiles` and that are not meant.
    """

    profiles: list[RuntimeProfile]
    functions: list[FunctionVersion]
    known: dict[str, RuntimeProfile]
    folder: Path  # of the functions
    invalid: list[FunctionReport]
    dependents: list[FunctionVersion]

    def profile_of(self, function: FunctionVersion) -> RuntimeProfile:
        return self.known[function.spec.runtime]


def find_targets(name: str | None, folders: Folders, *, verb: str) -> Targets:
    """The profile or the function of that name; without one all profiles, and all functions that have dependencies.

    Raises ConfigInvalid for a name that is unknown or both, and for what is meant and broken.
    """
    from faas.cli.node import runtimes_folder
    from faas.environments.profile import load_profiles

    kind, slash, rest = (name or "").rstrip("/").partition("/")
    if slash and kind not in KINDS:
        raise ConfigInvalid(f"{name}: write the name alone, or {' or '.join(f'{kind}/NAME' for kind in KINDS)}")
    wanted, kind = (rest, kind) if slash else (kind, "")
    runtimes = runtimes_folder(folders.runtimes)
    profiles, broken = load_profiles(runtimes)
    folder, functions, invalid = _functions(folders, profiles)
    for error in broken:
        if not wanted or (kind != "functions" and error.file.startswith(f"{wanted}/")):
            raise error
    asking = [function for function in functions if function.spec.dependencies]
    if name is None:
        return Targets(profiles=list(profiles.values()), functions=asking, known=profiles, folder=folder, invalid=invalid, dependents=[])
    profile = profiles.get(wanted) if kind != "functions" else None
    named = [function for function in functions if function.spec.name == wanted] if kind != "runtimes" else []
    if profile is not None and named:
        raise ConfigInvalid(f"{name} is a profile and a function; type faas {verb} runtimes/{name} or faas {verb} functions/{name}")
    if profile is None and not named:
        for report in invalid:
            if report.name == wanted and kind != "runtimes":
                raise ConfigInvalid(report.error)
        known = f"profiles: {', '.join(sorted(profiles)) or 'none'}; functions: {_names(functions)}"
        raise ConfigInvalid(f"no profile and no function {wanted} in {runtimes} and {folder}; {known}")
    chosen = [] if profile is None else [profile]
    dependents = [function for function in asking if profile is not None and function.spec.runtime == profile.name]
    return Targets(profiles=chosen, functions=named, known=profiles, folder=folder, invalid=[], dependents=dependents)


def _functions(folders: Folders, profiles: dict[str, RuntimeProfile]) -> tuple[Path, list[FunctionVersion], list[FunctionReport]]:
    """The functions of the folder that was given, or of `functions` where there is one; with or without their locks."""
    from faas.registry.spec import read_functions

    folder = folders.functions or Path("functions")
    if folders.functions is None and not folder.is_dir():
        return folder, [], []
    read = read_functions(folder, profiles, locked=False)
    return folder, read.functions, read.invalid


def _names(functions: list[FunctionVersion]) -> str:
    return ", ".join(sorted({function.spec.name for function in functions})) or "none"
