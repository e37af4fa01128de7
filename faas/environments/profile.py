"""Reads `runtimes/<name>/profile.toml` into RuntimeProfile, strictly. Knows the keys and what each may say; builds and locks nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from faas.errors import SpecInvalid
from faas.model import NAME_PATTERN, ProfileLimits, ProfilePool, RuntimeProfile
from faas.strict import parse_toml
from faas.syntax import parse
from faas.units import decode_unit

PROFILE_FILE = "profile.toml"
PROFILE_LIMIT_BYTES = 2**20
LOWEST_PYTHON = (3, 11)
"""The first minor version that `faas.worker` runs on."""

_NOT_YET: Mapping[str, str] = {
    "image": "it names the image of the docker backend",
    "sandbox": "it sets up the docker backend",
}
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")
_AT = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_KEYS: Mapping[str, tuple[str, ...]] = {
    "": tuple(name for name in RuntimeProfile.__struct_encode_fields__ if name not in ("name", "folder")),
    "pool": ProfilePool.__struct_encode_fields__,
    "limits": ProfileLimits.__struct_encode_fields__,
}


def shipped_runtimes() -> Path:
    """The folder of the profiles that come with the package: inside a wheel, else in the checkout."""
    return _shipped("runtimes")


def shipped_functions() -> Path:
    """The folder of the example functions that come with the package: inside a wheel, else in the checkout."""
    return _shipped("functions")


def shipped_templates() -> Path:
    """The folder of the templates of `faas new`: inside a wheel, else in the checkout."""
    return _shipped("templates")


def _shipped(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "shipped" / name
    return in_wheel if in_wheel.is_dir() else package.parent / name


def load_profiles(folder: Path) -> tuple[dict[str, RuntimeProfile], list[SpecInvalid]]:
    """Every profile of a folder by name, and what is wrong with the others; a broken one hides no other. Hidden folders are passed over."""
    profiles: dict[str, RuntimeProfile] = {}
    problems: list[SpecInvalid] = []
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith((".", "_")))
    except OSError as error:
        return {}, [
            SpecInvalid(str(folder), "", f"cannot be read ({error.strerror}); name a folder of runtime profiles with --runtimes DIR")
        ]
    for child in children:
        try:
            profiles[child.name] = load_profile(child)
        except SpecInvalid as problem:
            problems.append(problem)
    return profiles, problems


def load_profile(folder: Path) -> RuntimeProfile:
    """The profile of one folder, whose name is the profile's. Raises SpecInvalid, which names file and key."""
    file = f"{folder.name}/{PROFILE_FILE}"
    if re.fullmatch(NAME_PATTERN, folder.name) is None:
        raise SpecInvalid(file, "", f"{folder.name!r} is no name for a profile; rename the folder to match {NAME_PATTERN}")
    table = _read_table(folder / PROFILE_FILE, file)
    _refuse_unbuilt(table, file)
    _refuse_derived(table, file)
    try:
        profile = msgspec.convert(table, RuntimeProfile, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        raise _as_spec_invalid(str(error), file) from error
    _check_values(profile, file)
    return msgspec.structs.replace(profile, name=folder.name, folder=str(folder.resolve()))


def _read_table(path: Path, file: str) -> dict[str, object]:
    try:
        if not path.is_file():
            raise SpecInvalid(file, "", "is missing or no regular file; an empty one is a valid profile")
        if path.stat().st_size > PROFILE_LIMIT_BYTES:
            raise SpecInvalid(file, "", f"is above {PROFILE_LIMIT_BYTES} bytes")
        return parse_toml(path.read_bytes())
    except ValueError as error:
        raise SpecInvalid(file, "", str(error)) from error
    except OSError as error:
        raise SpecInvalid(file, "", f"cannot be read: {error.strerror}") from error


def _refuse_unbuilt(table: Mapping[str, object], file: str) -> None:
    for key, effect in _NOT_YET.items():
        if key in table:
            raise SpecInvalid(file, key, f"not supported yet ({effect}); leave it out")
    if isinstance(table.get("requirements"), dict):
        raise SpecInvalid(file, "requirements", 'a lock for each device is not supported yet; name one file, like "requirements.lock"')


def _refuse_derived(table: Mapping[str, object], file: str) -> None:
    """`name` and `folder` are fields of the struct but no keys: they come from where the file lies."""
    for key in ("name", "folder"):
        if key in table:
            raise SpecInvalid(file, key, "unknown key; the folder's name is the profile's")


def _as_spec_invalid(message: str, file: str) -> SpecInvalid:
    """msgspec's message as one of ours. Source: msgspec says "<problem> - at `$.pool.max`"."""
    unknown = _UNKNOWN_FIELD.fullmatch(message)
    if unknown is not None:
        where = unknown["where"] or ""
        known = _KEYS.get(where, ())
        close = difflib.get_close_matches(unknown["key"], known, n=1)
        advice = f'did you mean "{close[0]}"?' if close else f"known keys here: {', '.join(known)}"
        return SpecInvalid(file, f"{where}.{unknown['key']}".lstrip("."), f"unknown key; {advice}")
    parts = _AT.fullmatch(message)
    assert parts is not None  # the pattern takes any text
    problem = parts["problem"]
    return SpecInvalid(file, parts["where"] or "", problem[:1].lower() + problem[1:])


def _check_values(profile: RuntimeProfile, file: str) -> None:
    """What types cannot say. Raises SpecInvalid at the first key that is wrong."""
    for key, is_right, advice in (
        ("version", bool(profile.version.strip()), 'must not be empty; write it like "1"'),
        ("python", _is_python(profile.python), 'write a minor version from 3.11 on, like "3.12", or leave it out'),
        ("preload", all(_is_module(name) for name in profile.preload), 'write names of modules, like ["json", "torch"]'),
        ("warmup", _is_statement(profile.warmup), 'write one statement of Python, like "torch.ones(8) @ torch.ones(8)"'),
        (
            "requirements",
            _is_lock_name(profile.requirements),
            'name a file in the profile\'s folder that ends in .lock, like "requirements.lock"',
        ),
        ("pool.max", profile.pool.max >= 1, "must be at least 1"),
        ("pool.min_warm", 0 <= profile.pool.min_warm <= profile.pool.max, f"must lie between 0 and pool.max ({profile.pool.max})"),
        ("pool.spares", profile.pool.spares >= 0, "must be 0 or more"),
        ("limits.memory", profile.limits.memory_bytes > 0, 'must be above 0; write it like "8GiB"'),
        ("limits.cpus", 0 < profile.limits.cpus < float("inf"), "must be above 0, like 0.5 or 4"),
        ("limits.pids", profile.limits.pids >= 1, "must be at least 1"),
    ):
        if not is_right:
            raise SpecInvalid(file, key, advice)


def _is_python(text: str) -> bool:
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return text == "" or (match is not None and (int(match[1]), int(match[2])) >= LOWEST_PYTHON)


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _is_statement(text: str) -> bool:
    if not text.strip():
        return True
    try:
        return len(parse(text).body) == 1
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_lock_name(text: str) -> bool:
    return text.endswith(".lock") and len(text) > len(".lock") and not set(text) & set("/\\\0") and not text.startswith(".")
