"""Reads the functions of a folder into function versions. Never imports or runs what it reads; whatever is wrong with one is said of that one.

Knows profiles as far as their limits go, and neither the bus nor a worker.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from faas.errors import SpecInvalid
from faas.model import FunctionReport, FunctionSpec, FunctionVersion, MountedFolder, RuntimeProfile
from faas.registry.bundle import Bundle, Declaration, NoFunction, find_declaration, lock_path, read_bundle
from faas.registry.checks import check, supported
from faas.registry.lines import line_of
from faas.registry.mounts import find_mounts, inside_sources
from faas.registry.source import check_handler, may_be_meant
from faas.security.tenants import Tenants
from faas.strict import KeyInvalid, convert, parse_toml

log = structlog.get_logger()

ANY_TENANT = Tenants()
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


class Reading(NamedTuple):
    """What a folder holds: functions by name, a report for each that is invalid, and a sentence for each file that may be meant as one."""

    functions: list[FunctionVersion]
    invalid: list[FunctionReport]
    hints: list[str]

    def warn(self) -> None:
        """Say in the log what is wrong with it."""
        for hint in self.hints:
            log.warning("function.skipped", hint=hint)
        for report in self.invalid:
            log.warning("function.invalid", function=report.name, error=report.error)


def read_functions(
    folder: Path, profiles: Mapping[str, RuntimeProfile], *, mounts: Sequence[str] = (), tenants: Tenants = ANY_TENANT, locked: bool = True
) -> Reading:
    """The functions of a folder; never raises for what is in it.

    `mounts` are the folders of the node that functions may mount, `tenants` those that there are, and what bounds them. `locked=False` is for whoever makes locks: it takes functions
    that have none yet, and looks into no mount. Raises SpecInvalid where the folder itself cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SpecInvalid(
            str(folder),
            "",
            f"the functions folder cannot be read: {error.strerror}; `faas new NAME` makes a function, --functions DIR chooses another folder",
        ) from error
    functions: dict[tuple[str, str], FunctionVersion] = {}
    reading = Reading([], [], [])
    for entry in entries:
        if entry.name.startswith((".", "__")):
            continue
        try:
            found = _read(entry, profiles, mounts=mounts if locked else None, tenants=tenants)
            if isinstance(found, NoFunction):
                if found.source and (hint := may_be_meant(found.source)):
                    reading.hints.append(_as_text(f"{entry.name}: {hint}"))
                continue
            if found.key in functions:
                raise SpecInvalid(
                    found.file, "name", f"{found.spec.name} is the name of {functions[found.key].file} already; choose another"
                )
            functions[found.key] = found
        except SpecInvalid as error:
            name = entry.stem if entry.suffix == ".py" else entry.name
            reading.invalid.append(
                FunctionReport(name=_as_text(name), tenant="default", version="", runtime="", state="invalid", error=_as_text(str(error)))
            )
    reading.functions.extend(functions.values())
    return reading


def lock_file(folder: Path, function: FunctionVersion) -> Path:
    """Where the lock of a function's dependencies lies, or will, in the folder that the function was read from."""
    entry = folder / function.file.partition("/")[0]
    return lock_path(Declaration(file=function.file, text=b"", name="", handler="", entry=entry))


def _as_text(name: str) -> str:
    """What the disk has as names, as one line that can be printed and sent: whatever is neither stands as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _read(
    entry: Path, profiles: Mapping[str, RuntimeProfile], *, mounts: Sequence[str] | None, tenants: Tenants
) -> FunctionVersion | NoFunction:
    """One entry of the folder; without `mounts`, as far as a lock needs it."""
    try:
        declaration = find_declaration(entry)
        if isinstance(declaration, NoFunction):
            return declaration
        return _placed(declaration, profiles, mounts, tenants=tenants)
    except OSError as error:
        where = str(error.filename or entry).removeprefix(f"{entry.parent}/")
        raise SpecInvalid(where[:200], "", f"cannot be read: {error.strerror}") from error


def _placed(
    declaration: Declaration, profiles: Mapping[str, RuntimeProfile], mounts: Sequence[str] | None, *, tenants: Tenants
) -> FunctionVersion:
    """The function that a declaration makes; an error in it has the line where its key stands."""
    table = parse(declaration)
    try:
        spec = spec_of(declaration, table, profiles, tenants=tenants)
        return _make(declaration, spec, python=profiles[spec.runtime].python, mounts=mounts)
    except SpecInvalid as error:
        if error.line or not error.key or error.file != declaration.file:
            raise
        line = line_of(declaration.text.decode(), table, error.key)
        raise SpecInvalid(error.file, error.key, error.problem, line=line) from error


def _make(declaration: Declaration, spec: FunctionSpec, *, python: str, mounts: Sequence[str] | None) -> FunctionVersion:
    folders = () if mounts is None else find_mounts(declaration, spec, mounts)
    bundle = read_bundle(declaration, inside_sources(spec))
    if spec.dependencies and not bundle.lock and mounts is not None:
        check_handler(declaration, spec.handler, {file.path: file.data for file in bundle.files}, python=python)
        raise SpecInvalid(declaration.file, "dependencies", f"not locked yet; type: faas lock {spec.name}")
    return assemble(declaration, bundle, spec, python=python, folders=folders)


def assemble(
    declaration: Declaration, bundle: Bundle, spec: FunctionSpec, *, python: str, folders: tuple[MountedFolder, ...]
) -> FunctionVersion:
    """The version that a declaration, the bytes beside it and its mounts make. Raises SpecInvalid where the handler is not in them."""
    check_handler(declaration, spec.handler, {file.path: file.data for file in bundle.files}, python=python)
    lock = bundle.lock if spec.dependencies else b""
    inside = [(folder.target, folder.digest.encode()) for folder in folders if folder.copied]
    return FunctionVersion(
        spec=spec,
        version=_version(declaration, bundle, lock=lock, mounts=inside),
        files=bundle.files,
        lock=lock,
        mounts=folders,
        example=bundle.example,
        file=declaration.file,
        declaration=declaration.text,
    )


def _version(declaration: Declaration, bundle: Bundle, *, lock: bytes, mounts: Sequence[tuple[str, bytes]]) -> str:
    """What makes it another version. Folders of the node are left out: the same function has one version on all nodes."""
    digest = hashlib.sha256()
    parts = [("", declaration.text), *((file.path, file.data) for file in bundle.files), ("", lock), *mounts]
    for path, data in parts:
        for part in (path.encode(), data):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- the declaration


def parse(declaration: Declaration) -> dict[str, object]:
    """Raises SpecInvalid with the line where TOML gives it."""
    text = declaration.text
    try:
        text.decode()
        return parse_toml(text)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise SpecInvalid(declaration.file, "", f"is no UTF-8 text: {error.reason}", line=line) from error
    except ValueError as error:
        at = _AT_LINE.search(str(error))
        raise SpecInvalid(declaration.file, "", _AT_LINE.sub("", str(error)), line=int(at[1]) if at else 0) from error


def spec_of(
    declaration: Declaration, table: Mapping[str, object], profiles: Mapping[str, RuntimeProfile], *, tenants: Tenants = ANY_TENANT
) -> FunctionSpec:
    """What the table of a declaration says, with the defaults filled in and capped. Raises SpecInvalid, which names file and key."""
    try:
        spec = convert(supported(table), FunctionSpec)
        spec = msgspec.structs.replace(
            spec, name=spec.name or declaration.name, handler=spec.handler if "handler" in table else declaration.handler
        )
        profile = profiles.get(spec.runtime)
        if profile is None:
            raise KeyInvalid("runtime", f"no profile {spec.runtime[:80]!r}; there are: {', '.join(sorted(profiles)) or 'none'}")
        check(spec, profile, table=table, tenants=tenants)
    except KeyInvalid as error:
        raise SpecInvalid(declaration.file, error.key, error.problem) from error
    return _capped(spec, profile)


def _capped(spec: FunctionSpec, profile: RuntimeProfile) -> FunctionSpec:
    """Defaults are at most the profile's; what was written above it has been refused."""
    bound = profile.limits
    limits = msgspec.structs.replace(
        spec.limits,
        memory_bytes=min(spec.limits.memory_bytes, bound.memory_bytes),
        cpus=min(spec.limits.cpus, bound.cpus),
        pids=min(spec.limits.pids, bound.pids),
    )
    return msgspec.structs.replace(spec, limits=limits)
