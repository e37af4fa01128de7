"""Probes of what a project brings: profiles and their locks, functions, the state folder, and the node that runs on it. Reads, and writes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from faas.cli.findings import Finding, ok, problem, warning
from faas.cli.machine import clock, existing
from faas.errors import ConfigInvalid, EnvironmentFailed, FaasError, SpecInvalid
from faas.model import RuntimeProfile
from faas.units import format_size

if TYPE_CHECKING:
    from faas.config import FileConfig

OLDEST_PYTHON = (3, 11)
HTTP_S = 3.0
_MADE_ON = re.compile(rb"^# download-bytes:.*\bPython (\d+\.\d+)", re.MULTILINE)


def python() -> Iterable[Finding]:
    """The interpreter that runs the node."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return [problem("python", f"{version}; 3.11 or newer is needed", "python3.11 -m venv .venv")]
    return [ok("python", f"{version}, {sys.executable}")]


# ---------------------------------------------------------------- profiles and functions


def profiles(found: Mapping[str, RuntimeProfile], broken: Iterable[SpecInvalid]) -> Iterator[Finding]:
    """Each runtime profile: its declaration, its lock, and an interpreter for it."""
    for error in broken:
        yield problem("profile", str(error), f"edit {error.file}")
    for profile in found.values():
        yield _profile(profile)


def _profile(profile: RuntimeProfile) -> Finding:
    from faas.environments.interpreter import find_interpreter
    from faas.environments.lockfile import is_stale, read_lock, source_path

    name = f"profile {profile.name}"
    try:
        lock = read_lock(profile)
        interpreter = asyncio.run(find_interpreter(profile.name, profile.python))
        if is_stale(profile):
            return warning(
                name, f"{source_path(profile).name} was edited after {profile.requirements} was made", f"faas lock {profile.name}"
            )
    except EnvironmentFailed as error:
        return problem(name, error.detail, f"faas lock {profile.name}" if "faas lock" in error.detail else "")
    made_on = _MADE_ON.search(lock.data)
    if made_on is not None and made_on[1].decode() != interpreter.version:
        detail = f"its lock was made on Python {made_on[1].decode()} and runs on {interpreter.version}: a package may have no wheel for it"
        return warning(name, detail, f"faas build {profile.name}")
    return ok(name, f"{len(lock.pins)} package{'' if len(lock.pins) == 1 else 's'} locked, Python {interpreter.version}")


def config(file: Path) -> Iterable[Finding]:
    """`faas.toml` and the variables that win over it."""
    from faas.config import load_file

    present = file if file.exists() else None
    try:
        load_file(present, os.environ)
    except ConfigInvalid as error:
        return [problem("config", str(error), f"edit {file}")]
    return [ok("config", f"{file}" if present else f"no {file}: the defaults hold")]


def functions(folder: Path, found: Mapping[str, RuntimeProfile], settings: FileConfig) -> Iterator[Finding]:
    """Every function that cannot be served, and every lock of one that no longer matches."""
    from faas.environments.dependencies import problem_of
    from faas.registry.spec import read_functions
    from faas.security.tenants import Tenants

    if not folder.exists():
        yield warning("functions", f"no folder {folder}", "faas new hello")
        return
    try:
        versions, invalid, hints = read_functions(folder, found, mounts=settings.node.mounts, tenants=Tenants(settings.tenant))
    except SpecInvalid as error:
        yield problem("functions", str(error), "faas up --functions DIR")
        return
    for report in invalid:
        typed = report.error.rpartition("; type: ")[2] if "; type: " in report.error else ""
        yield problem(f"function {report.name}", report.error, typed)
    for hint in hints:
        yield warning("functions", hint, "")
    for function in versions:
        try:
            said = problem_of(function, found[function.spec.runtime])
        except EnvironmentFailed as error:
            said = error.detail
        if said:
            yield problem(f"function {function.spec.name}", f"dependencies: {said}", f"faas lock {function.spec.name}")
    if versions or not invalid:
        yield ok("functions", f"{', '.join(sorted(function.spec.name for function in versions)) or 'none'} in {folder}")


# ---------------------------------------------------------------- the state folder and its node


def state(folder: Path) -> Iterator[Finding]:
    """Whether a node may write it, and whether others may read what only its owner should."""
    if not folder.exists():
        above = existing(folder)
        may = os.access(above, os.W_OK | os.X_OK)
        yield (
            ok("state", f"{folder} is not there yet; a node makes it")
            if may
            else problem("state", f"{above} cannot be written", "faas up --state DIR")
        )
        return
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield problem("state", f"{folder} cannot be written by this user", "faas up --state DIR")
        return
    mode = folder.stat().st_mode
    if mode & 0o022:
        yield problem("state", f"{folder} may be written by others, and what is in it is run", f"chmod 700 {folder}")
    elif mode & 0o077:
        yield warning("state", f"{folder} may be read by others", f"chmod 700 {folder}")
    else:
        yield ok("state", f"{folder} is its owner's alone")
    for file in (folder / "node.json", folder / "nats" / "server.conf"):
        if file.exists() and file.stat().st_mode & 0o077:
            yield problem("state", f"{file} holds the bus's token and may be read by others", f"chmod 600 {file}")


def node(folder: Path) -> Iterable[Finding]:
    """The node on this state folder: whether one runs, is ready and answers on its bus."""
    try:
        info = json.loads((folder / "node.json").read_bytes())
        name, pid, http, bus = str(info["node"]), int(info["pid"]), str(info["http"]), str(info["nats"])
    except FileNotFoundError:
        return [ok("node", f"none runs on {folder}; start one with `faas up`"), *_ports()]
    except (ValueError, KeyError, TypeError):
        return [problem("node", f"{folder / 'node.json'} is not what a node wrote", f"rm {folder / 'node.json'}")]
    try:
        with urllib.request.urlopen(f"{http}/readyz", timeout=HTTP_S) as answer:
            doubtful = str(json.loads(answer.read()).get("detail", ""))
    except urllib.error.HTTPError as error:
        return [warning("node", f"{name} is not ready: {_detail(error)}", "faas doctor")]
    except (OSError, ValueError) as error:
        if Path(f"/proc/{pid}").exists():
            return [problem("node", f"{name} (process {pid}) does not answer at {http}: {error}", f"kill {pid}")]
        return [warning("node", f"{name} was killed, or its machine stopped; the next start cleans up", "faas up")]
    try:
        served, held, bound, ahead_s = asyncio.run(_served(bus))
    except FaasError as error:
        return [problem("node", f"{name} answers at {http}, and its bus does not: {error}", f"kill {pid}")]
    detail = f"{name} runs on {folder}, ready, with {served} functions"
    stands = warning("node", f"{detail}; {doubtful}", "") if doubtful else ok("node", detail)
    return [stands, _events(held, bound), *clock(ahead_s)]


def _events(held: int, bound: int) -> Finding:
    """How full FAAS_EVENTS is: full, it refuses publishers."""
    from faas.bus.janitor import FILLING

    if bound <= 0:
        return ok("events", f"{format_size(held)} are stored, without a bound")
    detail = f"{format_size(held)} of {format_size(bound)} are taken"
    if held < FILLING * bound:
        return ok("events", detail)
    detail += "; settled events go by themselves after two minutes, others once their functions have run; full, it refuses publishers"
    return warning("events", detail, "grep stream.filling in the node's log for who is behind, or raise max_bytes in [bus] of faas.toml")


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error)


async def _served(url: str) -> tuple[int, int, int, float | None]:
    """(functions that are ready, bytes that FAAS_EVENTS holds, its bound, how far this machine's clock is ahead of the bus's)."""
    from faas import subjects
    from faas.bus.clock import skew_s
    from faas.bus.inspection import room
    from faas.client import connect

    async with connect(url) as client:
        ready = sum(report.state == "ready" for report in await client.functions())
        return ready, *(await room(client.nats, subjects.EVENTS)), await skew_s(client.nats)


def _ports() -> Iterator[Finding]:
    """Whether the addresses that `faas up` takes by itself are free."""
    for option, port in (("--bus", 4222), ("--http", 8080)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                yield warning("ports", f"127.0.0.1:{port} cannot be listened on: {error.strerror}", f"faas up {option} 127.0.0.1:0")
