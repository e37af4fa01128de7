"""Reads `functions/<name>/` into function versions. Never imports or runs what it reads; whatever is wrong with one is said of that one.

Knows profiles as far as their limits go, and neither the bus nor a worker.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from faas import subjects
from faas.config import KeyInvalid, convert, parse_toml
from faas.errors import SpecInvalid
from faas.model import NAME_PATTERN, FunctionReport, FunctionSpec, FunctionVersion, RuntimeProfile, SourceFile
from faas.registry.checks import is_requirement
from faas.registry.source import check_handler
from faas.units import format_size

SPEC_FILE = "function.toml"
EXAMPLE_FILE = "example_event.json"
LOCK_FILE = "requirements.lock"
SPEC_LIMIT_BYTES = 2**20
FOLDER_LIMIT_BYTES = 16 * 2**20
FILES_LIMIT = 2000
TAGS_LIMIT = 20
TAGS_BYTES = 1024
_NAME = re.compile(NAME_PATTERN)
_HEADER_BLOCK = re.compile(rb"^# /// faas\s*$", re.MULTILINE)

NOT_YET: Mapping[str, tuple[str, ...]] = {
    "": ("policy", "secrets", "env", "mount", "budget", "batch", "dev"),
    "gpu": ("memory", "kinds", "share"),
    "scale": ("concurrency", "weight"),
    "trigger": ("stream", "webhook", "verify", "secret", "schedule", "timezone", "payload"),
}
"""Keys of the contract whose effect is not built; refused, so that nobody relies on them."""
NO_EFFECT: Mapping[str, object] = {"gpu.share": "shared", "scale.concurrency": 1, "scale.weight": 1}
"""Of these, values that ask for nothing beyond what is there."""


def read_functions(
    folder: Path, profiles: Mapping[str, RuntimeProfile], *, locked: bool = True
) -> tuple[list[FunctionVersion], list[FunctionReport]]:
    """The functions of a folder, by name, and a report for each that is invalid; never raises for what is in it.

    `locked=False` also takes functions whose dependencies have no lock yet, for whoever makes it. Raises SpecInvalid where the
    folder itself cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SpecInvalid(
            str(folder), "", f"the functions folder cannot be read: {error.strerror}; choose another with --functions DIR"
        ) from error
    functions: dict[tuple[str, str], tuple[str, FunctionVersion]] = {}
    invalid: list[FunctionReport] = []
    for entry in entries:
        if entry.name.startswith((".", "__")):
            continue
        try:
            function = _read(entry, profiles, locked=locked)
            if function is None:
                continue
            if function.key in functions:
                other = functions[function.key][0]
                raise SpecInvalid(
                    f"{entry.name}/{SPEC_FILE}", "name", f"{function.spec.name} is the name of {other}/ already; give one another name"
                )
            functions[function.key] = (entry.name, function)
        except SpecInvalid as error:
            name = entry.stem if entry.suffix == ".py" else entry.name
            invalid.append(
                FunctionReport(name=_as_text(name), tenant="default", version="", runtime="", state="invalid", error=_as_text(str(error)))
            )
    return [function for _, function in functions.values()], invalid


def _as_text(name: str) -> str:
    """A name that the disk has, as something that can be printed and sent: bytes that are no UTF-8 stand as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _read(entry: Path, profiles: Mapping[str, RuntimeProfile], *, locked: bool) -> FunctionVersion | None:
    """One entry of the folder; None where it is no function."""
    try:
        if entry.is_dir():
            return _read_folder(entry, profiles, locked=locked)
        if entry.is_symlink() and not entry.exists():
            raise SpecInvalid(entry.name, "", "is a link that leads nowhere; remove it")
        if (
            entry.suffix == ".py"
            and entry.is_file()
            and entry.stat().st_size <= SPEC_LIMIT_BYTES
            and _HEADER_BLOCK.search(entry.read_bytes())
        ):
            raise SpecInvalid(entry.name, "", f"a function in a single file is not supported yet; make it {entry.stem}/handler.py")
    except OSError as error:
        where = str(error.filename or "").rpartition("/")[2]
        raise SpecInvalid(f"{entry.name}/{where}", "", f"cannot be read: {error.strerror}") from error
    return None


def _read_folder(folder: Path, profiles: Mapping[str, RuntimeProfile], *, locked: bool) -> FunctionVersion:
    files = tuple(_files(folder))
    by_path = {file.path: file.data for file in files}
    if SPEC_FILE not in by_path:
        raise SpecInvalid(f"{folder.name}/{SPEC_FILE}", "", "is missing; an empty file is a valid function")
    spec = _parse(folder.name, by_path[SPEC_FILE], profiles)
    check_handler(folder.name, spec.handler, by_path)
    lock = by_path.get(LOCK_FILE, b"") if spec.dependencies else b""
    if spec.dependencies and locked and not lock:
        raise SpecInvalid(f"{folder.name}/{SPEC_FILE}", "dependencies", f"not locked yet; type: faas lock {spec.name}")
    digest = hashlib.sha256()
    for file in files:
        if file.path == EXAMPLE_FILE or (file.path == LOCK_FILE and not lock):
            continue
        for part in (file.path.encode(), file.data):
            digest.update(len(part).to_bytes(8, "big") + part)
    code = tuple(file for file in files if file.path not in (SPEC_FILE, EXAMPLE_FILE, LOCK_FILE))
    return FunctionVersion(spec=spec, version=digest.hexdigest()[:16], files=code, lock=lock, example=by_path.get(EXAMPLE_FILE, b""))


def _files(folder: Path) -> Iterator[SourceFile]:
    """Every regular file, in order; links, devices and what is too much are refused."""
    total_bytes, count = 0, 0
    for root, directories, names in os.walk(folder, onerror=_raise):
        directories[:] = sorted(d for d in directories if d != "__pycache__" and not d.startswith("."))
        for name in sorted(names) + [d for d in directories if (Path(root) / d).is_symlink()]:
            path = Path(root) / name
            inside = path.relative_to(folder).as_posix()
            if name.startswith(".") or name.endswith(".pyc"):
                continue
            if not inside.isprintable():
                raise SpecInvalid(f"{folder.name}/{inside}", "", "its name is no printable text; rename it")
            if path.is_symlink() or not path.is_file():
                raise SpecInvalid(f"{folder.name}/{inside}", "", "is no regular file; copy what it should hold")
            size = path.stat().st_size
            if inside == SPEC_FILE and size > SPEC_LIMIT_BYTES:
                raise SpecInvalid(f"{folder.name}/{inside}", "", f"has {format_size(size)}; {format_size(SPEC_LIMIT_BYTES)} at most")
            total_bytes, count = total_bytes + size, count + 1
            if total_bytes > FOLDER_LIMIT_BYTES or count > FILES_LIMIT:
                raise SpecInvalid(
                    folder.name, "", f"has more than {format_size(FOLDER_LIMIT_BYTES)} or {FILES_LIMIT} files; keep data elsewhere"
                )
            yield SourceFile(inside, path.read_bytes())


def _raise(error: OSError) -> None:
    raise error


# ---------------------------------------------------------------- function.toml


def _parse(folder: str, text: bytes, profiles: Mapping[str, RuntimeProfile]) -> FunctionSpec:
    file = f"{folder}/{SPEC_FILE}"
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise SpecInvalid(file, "", str(error)) from error
    return parse_spec(folder, table, profiles)


def parse_spec(folder: str, table: Mapping[str, object], profiles: Mapping[str, RuntimeProfile]) -> FunctionSpec:
    """What the table of a `function.toml` says, with the defaults filled in and capped. Raises SpecInvalid, which names file and key."""
    file = f"{folder}/{SPEC_FILE}"
    _refuse_not_yet(file, table)
    try:
        spec = convert(table, FunctionSpec)
    except KeyInvalid as error:
        raise SpecInvalid(file, error.key, error.problem) from error
    spec = msgspec.structs.replace(spec, name=spec.name or folder)
    profile = profiles.get(spec.runtime)
    if profile is None:
        raise SpecInvalid(file, "runtime", f"no profile {spec.runtime[:80]!r}; there are: {', '.join(sorted(profiles)) or 'none'}")
    _check(file, spec, profile, table=table)
    return _capped(spec, profile, table)


def _refuse_not_yet(file: str, table: Mapping[str, object]) -> None:
    for section, keys in NOT_YET.items():
        inside = table if not section else table.get(section, {})
        for part in inside if isinstance(inside, list) else [inside]:
            for key in keys:
                path = f"{section}.{key}".lstrip(".")
                if isinstance(part, Mapping) and key in part and not _asks_for_nothing(path, part[key]):
                    raise SpecInvalid(file, path, "not supported yet; remove it")
    for section in ("gpu", "scale"):
        inside = table.get(section)
        if isinstance(inside, dict):
            for key in NOT_YET[section]:
                inside.pop(key, None)


def _asks_for_nothing(path: str, value: object) -> bool:
    return path in NO_EFFECT and type(value) is type(NO_EFFECT[path]) and value == NO_EFFECT[path]


def _check(file: str, spec: FunctionSpec, profile: RuntimeProfile, *, table: Mapping[str, object]) -> None:
    limits, retry, scale, bound = spec.limits, spec.retry, spec.scale, profile.limits
    written = table.get("limits", {})
    written = written if isinstance(written, Mapping) else {}
    rules: list[tuple[bool, str, str]] = [
        (bool(_NAME.fullmatch(spec.name)), "name", f"{spec.name[:80]!r} is no name; begin with a-z, then a-z, 0-9 and -, at most 63"),
        (bool(_NAME.fullmatch(spec.tenant)), "tenant", f"{spec.tenant[:80]!r} is no name; begin with a-z, then a-z, 0-9 and -, at most 63"),
        (len(spec.tags) <= TAGS_LIMIT, "tags", f"{len(spec.tags)} tags; {TAGS_LIMIT} at most"),
        (len(str(dict(spec.tags)).encode()) <= TAGS_BYTES, "tags", f"more than {TAGS_BYTES} bytes; they go into every usage record"),
        (spec.gpu.count == 0 or spec.gpu.optional, "gpu.count", "GPUs are not supported yet; with optional = true it runs on the CPU"),
        (0 <= spec.gpu.count <= 64, "gpu.count", "must be between 0 and 64"),
        (0.001 <= limits.timeout_s <= 7 * 86_400, "limits.timeout", "must be between 1ms and 7d"),
        (0.001 <= limits.load_timeout_s <= 86_400, "limits.load_timeout", "must be between 1ms and 1d"),
        (0.001 <= limits.queue_timeout_s <= 7 * 86_400, "limits.queue_timeout", "must be between 1ms and 7d"),
        (limits.memory_bytes >= 16 * 2**20, "limits.memory", "must be at least 16MiB"),
        (limits.cpus > 0, "limits.cpus", "must be above 0"),
        (limits.pids >= 1, "limits.pids", "must be at least 1"),
        (1 <= limits.payload_bytes <= 2**30, "limits.payload", "must be between 1B and 1GiB"),
        (
            "memory" not in written or limits.memory_bytes <= bound.memory_bytes,
            "limits.memory",
            f"is above the {format_size(bound.memory_bytes)} of the profile {profile.name}",
        ),
        ("cpus" not in written or limits.cpus <= bound.cpus, "limits.cpus", f"is above the {bound.cpus:g} of the profile {profile.name}"),
        ("pids" not in written or limits.pids <= bound.pids, "limits.pids", f"is above the {bound.pids} of the profile {profile.name}"),
        (1 <= retry.max_attempts <= 100, "retry.max_attempts", "must be between 1 and 100"),
        (0 <= retry.backoff_s <= 86_400, "retry.backoff", "must be at most 1d"),
        (0 <= retry.max_backoff_s <= 86_400, "retry.max_backoff", "must be at most 1d"),
        (1 <= scale.max_workers <= 1024, "scale.max_workers", "must be between 1 and 1024"),
        (0 <= scale.min_warm <= scale.max_workers, "scale.min_warm", "must be between 0 and max_workers"),
        (0 <= scale.keep_alive_s <= 7 * 86_400, "scale.keep_alive", "must be at most 7d"),
    ]
    for holds, key, problem in rules:
        if not holds:
            raise SpecInvalid(file, key, problem)
    for index, trigger in enumerate(spec.triggers):
        problem_found = subjects.problem_with(trigger.subject)
        if problem_found is not None:
            raise SpecInvalid(file, f"trigger[{index}].subject", f"{trigger.subject[:80]!r}: {problem_found}")
    _check_output(file, spec)
    for index, dependency in enumerate(spec.dependencies):
        if not is_requirement(dependency):
            raise SpecInvalid(
                file,
                f"dependencies[{index}]",
                f'{dependency[:80]!r}: write a package and its versions, like "pillow>=11"; no options, addresses or paths',
            )


def _check_output(file: str, spec: FunctionSpec) -> None:
    subject = spec.output.publish
    if not subject:
        return
    problem = subjects.problem_with(subject)
    if problem is None and ("*" in subject or ">" in subject):
        problem = "a result goes to one subject; a wildcard is none"
    if problem is not None:
        raise SpecInvalid(file, "output.publish", f"{subject[:80]!r}: {problem}")


def _capped(spec: FunctionSpec, profile: RuntimeProfile, table: Mapping[str, object]) -> FunctionSpec:
    """Defaults are at most the profile's; what was written above it has been refused."""
    bound = profile.limits
    limits = msgspec.structs.replace(
        spec.limits,
        memory_bytes=min(spec.limits.memory_bytes, bound.memory_bytes),
        cpus=min(spec.limits.cpus, bound.cpus),
        pids=min(spec.limits.pids, bound.pids),
    )
    return msgspec.structs.replace(spec, limits=limits)
