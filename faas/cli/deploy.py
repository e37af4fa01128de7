"""`faas deploy`, `faas rollback`, `faas functions remove`: what all nodes of a bus serve. Every one is a named act; nodes only follow."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from faas.cli.options import Json, Where, console, print_json, say_error
from faas.errors import BusUnavailable, ConfigInvalid, only

if TYPE_CHECKING:
    from faas.bus.connection import Bus
    from faas.config import FileConfig
    from faas.model import FunctionSpec, FunctionVersion
    from faas.registry.registry import Registry

DEFAULT_FOLDER = Path("functions")
NEXT_SHOWN = 3
"""Of the times at which a schedule is due."""

Tenant = Annotated[str, Parameter(help="Whose function it is.")]


@dataclass(slots=True, frozen=True)
class _Deployed:
    function: FunctionVersion
    before: str  # the version that was served, "" where there was none
    changed: bool


def deploy(
    folder: Annotated[str | None, Parameter(help="Folder of the functions, default functions; or the first NAME.")] = None,
    *names: Annotated[str, Parameter(help="Only these functions of the folder.")],
    runtimes: Annotated[Path | None, Parameter(help="Folder of the profiles; default runtimes, else those that come with faas.")] = None,
    config: Annotated[Path, Parameter(help="Configuration file.")] = Path("faas.toml"),
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Have the functions of a folder served by every node of the bus."""
    from faas.config import load_file

    path = Path(folder) if folder is not None else DEFAULT_FOLDER
    if folder is not None and not path.is_dir():
        if "/" in folder:
            raise ConfigInvalid(f"no folder {folder}; type faas deploy FOLDER [NAME...]")
        path, names = DEFAULT_FOLDER, (folder, *names)
    settings = load_file(config if config.exists() else None, os.environ)
    functions, errors = _read(path, names, runtimes, settings=settings)
    done = asyncio.run(_deploy(functions, where, settings))
    if json:
        print_json([
            {"name": d.function.spec.name, "tenant": d.function.spec.tenant, "version": d.function.version, "previous": d.before, "changed": d.changed}
            for d in done
        ])  # fmt: skip
    else:
        for d in done:
            was = f" (was {d.before})" if d.before and d.changed else "" if d.changed else ", as before"
            console().print(f"{d.function.spec.name}: {d.function.version}{was}")
            for line in _next_fires(d.function.spec):
                console().print(line)
    for error in errors:
        say_error(ConfigInvalid.code, error, json=json)
    return 1 if errors else 0


def _next_fires(spec: FunctionSpec) -> Iterator[str]:
    """What its schedules come to, by this machine's clock."""
    from faas.cron import cron

    for trigger in spec.triggers:
        if trigger.schedule:
            schedule = cron(trigger.schedule, trigger.timezone)
            yield f"  {trigger.schedule}: next at {', '.join(map(schedule.local, schedule.times(time.time(), NEXT_SHOWN)))}"


def _read(folder: Path, names: Sequence[str], runtimes: Path | None, *, settings: FileConfig) -> tuple[list[FunctionVersion], list[str]]:
    """The functions that are meant, and what is wrong with others of them. Raises ConfigInvalid where a name is none, or nothing is meant."""
    from faas.cli.node import runtimes_folder
    from faas.environments.dependencies import problem_of
    from faas.environments.profile import load_profiles
    from faas.errors import EnvironmentFailed
    from faas.registry.spec import read_functions
    from faas.security.tenants import Tenants

    if not folder.is_dir():
        given = f" and no function {names[0]} in it" if names else ""
        raise ConfigInvalid(f"no folder {folder}{given}; type faas deploy FOLDER [NAME...]")
    profiles, _ = load_profiles(runtimes_folder(runtimes))
    reading = read_functions(folder, profiles, mounts=settings.node.mounts, tenants=Tenants(settings.tenant))
    known = {function.spec.name for function in reading.functions} | {report.name for report in reading.invalid}
    for name in names:
        if name not in known:
            raise ConfigInvalid(f"no function {name} in {folder}; there are: {', '.join(sorted(known)) or 'none'}")
    errors = [report.error for report in reading.invalid if not names or report.name in names]
    sound = []
    for function in reading.functions:
        if names and function.spec.name not in names:
            continue
        try:
            problem = problem_of(function, profiles[function.spec.runtime])
        except EnvironmentFailed as error:
            problem = error.detail if error.name == function.spec.name else ""
        if problem:
            errors.append(f"{function.file}: dependencies: {problem}")
        else:
            sound.append(function)
    if not sound and not errors:
        raise ConfigInvalid(f"no functions in {folder}; type faas new NAME, or name another folder")
    return sound, errors


async def _deploy(functions: list[FunctionVersion], where: Where, settings: FileConfig) -> list[_Deployed]:
    from faas.bus.declared import BUNDLES_BYTES

    done = []
    async with registry(where) as (_, registered):
        if functions and not await registered.present():
            await registered.ensure(replicas=settings.bus.replicas, bundle_bytes=BUNDLES_BYTES)
        before = {known.key: known.version for known in await registered.registrations() if not known.withdrawn}
        for function in functions:
            changed = await registered.deploy(function, by=whoami())
            done.append(_Deployed(function, before.get(function.key, ""), changed))
    return done


def rollback(
    name: Annotated[str, Parameter(help="The function.")],
    version: Annotated[str, Parameter(help="A version that was served, or its beginning; default the one before.")] = "",
    *,
    tenant: Tenant = "default",
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Have an earlier version of a function served."""
    before, after = asyncio.run(_roll_back(where, (tenant, name), version))
    if json:
        print_json({"name": name, "tenant": tenant, "version": after, "previous": before})
    else:
        console().print(f"{name}: {after}{f' (was {before})' if before and before != after else ''}")
    return 0


async def _roll_back(where: Where, key: tuple[str, str], version: str) -> tuple[str, str]:
    async with registry(where) as (_, registered):
        before = {known.key: known.version for known in await registered.registrations() if not known.withdrawn}
        after = await registered.roll_back(key, version, by=whoami())
    return before.get(key, ""), after.version


def remove(
    name: Annotated[str, Parameter(help="The function.")],
    *,
    purge: Annotated[bool, Parameter(negative="", help="Drop what waits for it too, and every version that it had.")] = False,
    tenant: Tenant = "default",
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Withdraw a function from all nodes."""
    waiting = asyncio.run(_remove(where, (tenant, name), purge=purge))
    if json:
        print_json({"name": name, "tenant": tenant, "purged": purge, "waiting": waiting})
    elif purge:
        console().print(f"{name}: removed, and {waiting} events that waited for it dropped")
    else:
        console().print(f"{name}: withdrawn; {waiting} events wait for it, until `faas deploy` or `faas rollback {name}` brings it back")
    return 0


async def _remove(where: Where, key: tuple[str, str], *, purge: bool) -> int:
    """How many events waited for it."""
    from faas.bus import consumers, streams
    from faas.bus.listing import owner

    async with registry(where) as (bus, registered):
        gone = await registered.withdraw(key, by=whoami())
        withdrawn = {owner(*known.key) for known in await registered.registrations() if known.withdrawn}
        await streams.uncover(bus, withdrawn)
        borrowed = {trigger.stream for trigger in gone.current.triggers if trigger.stream}
        if not purge:
            return await consumers.waiting_for(bus, *key, borrowed=borrowed)
        await registered.forget(key)
        return await consumers.drop_consumers(bus, *key, borrowed=borrowed)


@asynccontextmanager
async def registry(where: Where) -> AsyncIterator[tuple[Bus, Registry]]:
    """The registry of the bus that is meant, and its connection. Raises ConfigInvalid, BusUnavailable."""
    from faas.bus.connection import Bus
    from faas.calling.connection import address_of, hint_of
    from faas.registry.registry import Registry
    from faas.seeds import inbox_of, seed_of
    from faas.telemetry import set_up_logging

    set_up_logging(quiet=True)
    opened = False
    try:
        seed = seed_of(where.nkey)
        inbox = inbox_of(seed) if seed else ""
        async with Bus.open(address_of(where.nats, where.state), node="cli", seed=lambda: seed, inbox=inbox) as bus:
            opened = True
            yield bus, Registry(bus)
    except BaseExceptionGroup as group:
        raise only(group) from group
    except BusUnavailable as error:
        raise error if opened else BusUnavailable(f"{error}; {hint_of(where.nats, where.state, str(error))}") from error


def whoami() -> str:
    """Who deploys, as the history shows it: USER@HOST."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
