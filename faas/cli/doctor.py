"""`faas doctor`: what is wrong with this machine and project and what to type, and what suits a function by what was measured of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct

from faas.cli.findings import Finding, Probe, examine
from faas.cli.node import runtimes_folder
from faas.cli.options import Folders, Json, Where, console, print_json, readable
from faas.units import format_duration, format_size

if TYPE_CHECKING:
    from faas.accounting.advice import Advice, Measured
    from faas.client import Client
    from faas.config import FileConfig
    from faas.model import FunctionSpec, FunctionVersion, RuntimeProfile, UsageRecord

MESSAGES = 500
"""Of usage records, at most 64 in each: the newest ones say how a function is used now."""


def doctor(
    function: Annotated[str | None, Parameter(help="What suits this function; else the machine and the project are examined.")] = None,
    *,
    tenant: Annotated[str, Parameter(help="Whose function it is.")] = "default",
    folders: Folders = Folders(),  # noqa: B008  # frozen
    config: Annotated[Path, Parameter(help="Configuration file of the node.")] = Path("faas.toml"),
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Say what is wrong, and what to type."""
    from faas.cli import confidential, project
    from faas.cli.webhooks import webhooks
    from faas.environments.profile import load_profiles
    from faas.telemetry import set_up_logging

    set_up_logging(quiet=True)
    readable(where.state, "--state")
    functions = folders.functions or Path("functions")
    profiles, broken = load_profiles(runtimes_folder(folders.runtimes))
    if function is not None:
        source = _source(functions, profiles, mounts=_settings(config).node.mounts, key=(tenant, function))
        diagnosis = asyncio.run(_diagnose(where, tenant, function, source=source, profiles=profiles))
        if json:
            print_json(msgspec.to_builtins(diagnosis))
        else:
            _print_diagnosis(diagnosis)
        return 0
    probes: dict[str, Probe] = {
        "config": lambda: project.config(config),
        "profiles": lambda: project.profiles(profiles, broken),
        "functions": lambda: project.functions(functions, profiles, _settings(config)),
        "secrets": lambda: confidential.secrets(config, functions, profiles),
        "webhooks": lambda: webhooks(config, functions, profiles),
    }
    findings = examine(_machine(where, profiles) | probes | {"node": lambda: project.node(where.state)})
    if json:
        print_json(msgspec.to_builtins(findings))
    else:
        _print_findings(findings)
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def _machine(where: Where, profiles: Mapping[str, RuntimeProfile]) -> dict[str, Probe]:
    from faas.cli import confidential, machine, project

    url = where.nats or os.environ.get("FAAS_NATS")
    return {
        "python": project.python,
        "nats": lambda: machine.nats(url, where.nkey),
        "uv": machine.uv,
        "docker": machine.docker,
        "gpu": lambda: machine.gpu(profiles.values()),
        "disk": lambda: machine.disk(where.state),
        "limits": machine.limits,
        "isolation": machine.isolation,
        "state": lambda: project.state(where.state),
        "files": lambda: confidential.files(Path()),
    }


def _settings(config: Path) -> FileConfig:
    """What says which folders functions may mount, and which tenants there are; the defaults where the file cannot be read."""
    from faas.config import FileConfig, load_file
    from faas.errors import ConfigInvalid

    try:
        return load_file(config if config.exists() else None, os.environ)
    except ConfigInvalid:
        return FileConfig()


def _print_findings(findings: list[Finding]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "how it is", "type"):
        table.add_column(heading, no_wrap=heading in ("what", "state"), overflow="fold")
    for finding in findings:
        table.add_row(finding.name, finding.state, finding.detail, finding.fix)
    console().print(table)
    bad = sum(finding.state == "problem" for finding in findings)
    doubtful = sum(finding.state == "warning" for finding in findings)
    console().print(f"\n{_count(bad, 'problem')}, {_count(doubtful, 'warning')}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- one function


class Diagnosis(Struct, frozen=True, kw_only=True):
    """What was measured of a function, and what follows; `note` says why there is no advice, or what it does not cover."""

    function: str
    tenant: str
    measured: Measured
    advice: tuple[Advice, ...] = ()
    note: str = ""


def _source(
    folder: Path, profiles: Mapping[str, RuntimeProfile], *, mounts: tuple[str, ...], key: tuple[str, str]
) -> FunctionVersion | None:
    """The function as the folder has it, None where it has not."""
    from faas.errors import SpecInvalid
    from faas.registry.spec import read_functions

    try:
        found = read_functions(folder, profiles, mounts=mounts).functions
    except SpecInvalid:
        return None
    return next((version for version in found if version.key == key), None)


async def _diagnose(
    where: Where, tenant: str, name: str, *, source: FunctionVersion | None, profiles: Mapping[str, RuntimeProfile]
) -> Diagnosis:
    from faas.accounting import advice
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        spec, version = await _served(client, tenant, name, source=source)
        measured = advice.measure(await _records(client, tenant, name))
    found = Diagnosis(function=name, tenant=tenant, measured=measured)
    if measured.attempts < advice.ENOUGH:
        note = f"{measured.attempts} attempts are recorded; {advice.ENOUGH} are needed before anything can be advised"
        return msgspec.structs.replace(found, note=note)
    said = [advice.mode(measured, min_warm=spec.scale.min_warm, keep_alive_s=spec.scale.keep_alive_s)]
    said += advice.limits(measured, memory_bytes=spec.limits.memory_bytes, timeout_s=spec.limits.timeout_s)
    note = ""
    if source is None or (version and source.version != version):
        note = "which profile suits it cannot be told: its source, as it is served, is not in the functions folder"
    else:
        imported = advice.imported_modules(file.data for file in source.files if file.path.endswith(".py"))
        fits = advice.profile(spec, imported, {name: _modules(profile) for name, profile in profiles.items()})
        said += [fits] if fits else []
    return msgspec.structs.replace(found, advice=tuple(said), note=note)


async def _served(client: Client, tenant: str, name: str, *, source: FunctionVersion | None) -> tuple[FunctionSpec, str]:
    """(declaration in effect, version) as a node serves it, else as the folder has it. Raises NoSuchFunction."""
    from faas.client import no_such_function
    from faas.errors import BusUnavailable
    from faas.model import FunctionSpec
    from faas.strict import KeyInvalid, convert

    try:
        reports = await client.functions(name)
    except BusUnavailable:  # a bus without a node has the records all the same
        reports = []
    for report in reports:
        if report.tenant == tenant and report.declaration:
            try:
                return convert({key: value for key, value in report.declaration.items() if key != "env"}, FunctionSpec), report.version
            except KeyInvalid:
                break  # a node of another version of this package
    if source is None:
        raise no_such_function(name, tenant, [report.tenant for report in reports if report.tenant != tenant])
    return source.spec, ""


async def _records(client: Client, tenant: str, name: str) -> list[UsageRecord]:
    from faas import subjects
    from faas.bus.inspection import newest
    from faas.model import UsageRecord

    records: list[UsageRecord] = []
    for message in await newest(client.nats, subjects.USAGE, subjects.usage(tenant, name), limit=MESSAGES):
        try:
            records += msgspec.json.decode(message.data, type=list[UsageRecord])
        except msgspec.DecodeError:
            continue  # somebody else's, or of another version
    return records


def _modules(profile: RuntimeProfile) -> frozenset[str]:
    """What the lock of a profile lets a source import, by the names of its packages."""
    from faas.environments.lockfile import read_lock
    from faas.errors import EnvironmentFailed

    try:
        return frozenset(pin.name.lower().replace("-", "_") for pin in read_lock(profile).pins)
    except EnvironmentFailed:
        return frozenset()


def _print_diagnosis(found: Diagnosis) -> None:
    measured = found.measured
    print(f"{found.function} of tenant {found.tenant}")
    if measured.attempts:
        an_hour = f"{measured.per_hour:,.0f}" if measured.per_hour >= 10 else f"{measured.per_hour:.2g}"
        rate = f", {an_hour} an hour over {format_duration(measured.span_s)}" if measured.per_hour else ""
        print(f"  attempts    {measured.attempts}{rate}; {measured.ended_badly} ended as anything but succeeded")
        print(f"  starts      {', '.join(f'{count} {start}' for start, count in measured.starts.items())}")
        for what in ("queue", "load", "run", "cpu"):
            spread = getattr(measured, what)
            print(f"  {what.ljust(10)}  p50 {format_duration(spread.p50_us / 1e6)}, p95 {format_duration(spread.p95_us / 1e6)}")
        print(f"  memory      peak {format_size(measured.memory_peak_bytes)}")
    for advice in found.advice:
        print(f"\n{advice.key}: {advice.because}")
        if advice.set_to:
            section, _, key = advice.key.rpartition(".")
            value = advice.set_to if advice.set_to.isdecimal() else f'"{advice.set_to}"'
            print(f"  write in function.toml: {f'[{section}] ' if section else ''}{key} = {value}")
    if found.note:
        print(f"\n{found.note}")
