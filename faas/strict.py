"""TOML that people write, read strictly: an unknown key, a wrong type or a value that is none is an error that names it and says what would be right.

For every file of ours. Knows no file and no section.
"""

from __future__ import annotations

import re
import threading
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct, structs

from faas.units import decode_unit

T = TypeVar("T")

LINE_DOTS = 1000
"""tomllib takes quadratic time for a dotted key: 11 s for 32,000 parts, minutes for a file of 1 MiB."""

_ONE_AT_A_TIME = threading.Lock()
"""msgspec learns a type at its first use, and a thread that meets it half learnt ends the process (0.22: 13 of 30 tries with 16 threads)."""


class KeyInvalid(Exception):
    """A key of a table is wrong: `key` is dotted, "" where the whole table is meant; whoever knows the file says which one."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key, self.problem = key, problem


def parse_toml(data: bytes) -> dict[str, object]:
    """A TOML document. Raises ValueError with what is wrong, and at which line where TOML tells."""
    if max((line.count(b".") for line in data.splitlines()), default=0) > LINE_DOTS:
        raise ValueError(f"is no TOML that anyone would write: a line has more than {LINE_DOTS} dots")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("is no TOML: nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is no TOML: {error}") from error
    except ValueError as error:
        raise ValueError("is no TOML: a number has more digits than can be read") from error


def convert(table: Mapping[str, object], root: type[T]) -> T:
    """A table as the frozen Struct `root`. Raises KeyInvalid with the key, what is wrong, and what would be right."""
    try:
        with _ONE_AT_A_TIME:
            return msgspec.convert(table, root, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        text, _, where = str(error).rpartition(" - at `$")
        raise _explained(text or where, where.rstrip("`").lstrip(".").replace("[...]", "") if text else "", root) from error
    except RecursionError as error:
        raise KeyInvalid("", "nested too deeply") from error


def _explained(text: str, path: str, root: type) -> KeyInvalid:
    """msgspec's words as ours, with the nearest known key or value."""
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        known = [f.encode_name for f in _fields(type_at(root, path))]
        key = match[1] if match[1].isprintable() and match[1] else repr(match[1])
        return KeyInvalid(f"{path}.{key}".lstrip(".")[:200], f"unknown key; {_nearest(match[1], known, 'known keys')}")
    if match := re.fullmatch(r"Object missing required field `(.*)`", text):
        return KeyInvalid(f"{path}.{match[1]}".lstrip("."), "is missing")
    if match := re.fullmatch(r"Invalid enum value (.*)", text, re.DOTALL):
        known = [str(value) for kind in _alternatives(type_at(root, path)) for value in get_args(kind)]
        return KeyInvalid(path, f"unknown value {match[1][:80]}; {_nearest(match[1].strip(chr(39)), known, 'known values')}")
    if match := re.fullmatch(r"Expected `(.*)`, got `(.*)`", text):
        return KeyInvalid(path, f"must be {_KINDS.get(match[1], match[1])}, and is {_KINDS.get(match[2], match[2])}")
    return KeyInvalid(path, f"{text[:1].lower()}{text[1:]}")


_KINDS = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list", "object": "a table",
    "date": "a date", "datetime": "a date with time", "time": "a time",
}  # fmt: skip


def _nearest(given: str, known: list[str], what: str) -> str:
    near = get_close_matches(given, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{what}: {', '.join(known)}"


def type_at(root: type, path: str) -> Any:
    """The type at a dotted path of encoded names, `trigger[0].subject`; None where there is none."""
    current: Any = root
    for part in re.findall(r"[^.\[\]]+|\[\d+\]", path):
        if part.startswith("["):
            current = next(iter(get_args(current)), None)
        else:
            current = next((f.type for f in _fields(current) if f.encode_name == part), None)
    return current


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """What a key may be where it may also be left out: `Verify | None` -> Verify."""
    return tuple(one for one in get_args(kind) if one is not NoneType) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fields(kind: Any) -> tuple[structs.FieldInfo, ...]:
    return structs.fields(kind) if isinstance(kind, type) and issubclass(kind, Struct) else ()
