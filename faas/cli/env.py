"""`faas env`: how the environments of profiles and functions stand, what is in one, and the removal of those that nothing uses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import DEFAULT_STATE, Folders, Json, State, console, print_json
from faas.cli.targets import Targets, find_targets
from faas.errors import ConfigInvalid
from faas.units import format_size

if TYPE_CHECKING:
    from faas.environments.inventory import Listed
    from faas.environments.store import Pruned, Store

DIGEST_CHARACTERS = 16


def env(
    name: Annotated[str | None, Parameter(help="Show this profile or function with its packages; default a list of all.")] = None,
    *,
    prune: Annotated[bool, Parameter(negative="", help="Remove what no profile and no function here uses, and no running node.")] = False,
    folders: Folders = Folders(),  # noqa: B008  # frozen
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> int:
    """List environments, show one, or remove what is not used."""
    from faas.environments.store import Store

    if prune and name is not None:
        raise ConfigInvalid("--prune looks at all environments; leave the name out")
    targets = find_targets(name, folders, verb="env")
    store = Store(state / "environments")
    if prune:
        if not targets.folder.is_dir():
            raise ConfigInvalid(
                f"there is no folder {targets.folder}, so what its functions use is not known; name it with --functions DIR"
            )
        return _prune(store, asyncio.run(_survey(store, targets)), json=json)
    listed = asyncio.run(_survey(store, targets))
    if name is None:
        from faas.environments.inventory import unused

        listed += unused(store, listed)
    if json:
        print_json([_as_json(one, in_full=name is not None) for one in listed])
    elif name is None:
        _print_table(listed, state)
    else:
        print("\n\n".join("\n".join(_in_full(one)) for one in listed))
    return 0


async def _survey(store: Store, targets: Targets) -> list[Listed]:
    """Of a function without dependencies, its profile's environment is its own."""
    from faas.environments.inventory import Listed, survey, survey_overlay

    found = [await survey(store, profile) for profile in targets.profiles]
    for function in targets.functions:
        profile = targets.profile_of(function)
        own = bool(function.spec.dependencies)
        found.append(await survey_overlay(store, function, profile) if own else await survey(store, profile))
    return found + [Listed(profile="", function=one.name, digest="", state="invalid", problem=one.error) for one in targets.invalid]


def _as_json(listed: Listed, *, in_full: bool) -> dict[str, object]:
    document = dict(msgspec.to_builtins(listed))
    packages = document.pop("packages")
    count: dict[str, object] = {"package_count": len(packages)}
    return {**document, **count, **({"packages": packages} if in_full else {})}


def _print_table(listed: list[Listed], state: State) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("profile", "function", "digest", "state", "size", "python", "packages"):
        table.add_column(heading, no_wrap=True)
    for one in listed:
        size = format_size(one.size_bytes) if one.size_bytes else ""
        count = str(len(one.packages)) if one.state != "unused" else ""
        table.add_row(one.profile, one.function, one.digest[:DIGEST_CHARACTERS], _state(one), size, one.python, count)
    out = console()
    out.print(table)
    for one in listed:
        if one.problem:
            out.print(one.problem)
    if any(one.state == "absent" and not one.stale_lock for one in listed):
        out.print("what is absent is built when it is first needed, or now by: faas build")
    if any(one.state == "unused" for one in listed):
        out.print(f"what nothing here uses goes with: faas env --prune{'' if state == DEFAULT_STATE else f' --state {state}'}")


def _state(listed: Listed) -> str:
    return f"{listed.state}, stale lock" if listed.stale_lock else listed.state


def _in_full(listed: Listed) -> list[str]:
    """One environment: what it is, where, and every package."""
    lines = [
        f"{f'packages of {listed.function}, beside the environment of' if listed.function else 'environment of'} {listed.profile}",
        f"  digest   {listed.digest or '-'}",
        f"  state    {_state(listed)}",
        f"  size     {format_size(listed.size_bytes) if listed.size_bytes else '-'}",
        f"  python   {listed.python or '-'}",
        f"  folder   {listed.folder or '-'}",
    ]
    if listed.problem:
        lines.append(f"  problem  {listed.problem}")
    width = max((len(package.name) for package in listed.packages), default=0)
    return [*lines, f"  packages {len(listed.packages)}", *(f"    {one.name.ljust(width)} {one.version}" for one in listed.packages)]


def _prune(store: Store, listed: list[Listed], *, json: bool) -> int:
    """Raises ConfigInvalid where what a profile uses is not known, or where nothing may be removed."""
    for one in listed:
        if one.state == "invalid" and not one.function:
            raise ConfigInvalid(f"what {one.profile} uses is not known, so nothing was removed: {one.problem}")
    try:
        removed, used = store.prune({one.digest for one in listed})
    except OSError as error:
        raise ConfigInvalid(f"{store.folder} cannot be changed: {error.strerror}; run it as the owner of the state folder") from error
    freed_bytes = sum(one.size_bytes for one in removed)
    if json:
        print_json({"removed": msgspec.to_builtins(removed), "in_use": used, "freed_bytes": freed_bytes})
        return 0
    for pruned in removed:
        print(_removed(pruned))
    for digest in used:
        print(f"kept {digest[:DIGEST_CHARACTERS]}: a running node or build uses it")
    print(f"{len(removed)} removed, {format_size(freed_bytes)}")
    return 0


def _removed(pruned: Pruned) -> str:
    return f"removed {pruned.digest[:DIGEST_CHARACTERS]} {pruned.profile or '(incomplete)'} {format_size(pruned.size_bytes)}"
