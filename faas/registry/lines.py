"""Where in a TOML text a key stands, for the errors that a reader of values alone cannot place. Best effort: no line is better than a wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_TOKENS = re.compile(r'"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL)
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]\]?[ \t]*")
_ASSIGNMENT = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_PART = re.compile(r"[^.\[\]]+|\[\d+\]")

Path = tuple[str | int, ...]


def line_of(text: str, table: Mapping[str, object], key: str) -> int:
    """The line, from 1, of a dotted key (`limits.timeout`, `trigger[1].subject`) of a text that parses as `table`; 0 where it is in doubt.

    A key inside of a value that stands in one line has the line of that value; a key that is missing, the line of its table.
    """
    path = _resolved(table, key)
    places = list(_places(text)) if path else []
    while path:
        found = [line for at, line in places if at == path]
        if found:
            return found[0] if len(found) == 1 else 0
        path = path[:-1]
    return 0


def _resolved(table: object, key: str) -> Path:
    """The parts of a key, as far as the table has them; () where more than the last is not there."""
    parts = [int(part[1:-1]) if part.startswith("[") else part for part in _PART.findall(key)]
    path: Path = ()
    for index, part in enumerate(parts):
        has = part in table if isinstance(table, Mapping) else isinstance(table, list) and isinstance(part, int) and part < len(table)
        if not has:
            return path if index == len(parts) - 1 else ()
        table = table[part]  # type: ignore[index]
        path += (part,)
    return path


def _places(text: str) -> Iterator[tuple[Path, int]]:
    """(path, line) of every header and every key that begins a line."""
    counts: dict[Path, int] = {}
    current: Path = ()
    for number, line in enumerate(_TOKENS.sub(_blank, text).split("\n"), 1):
        if header := _HEADER.fullmatch(line.rstrip("\r")):
            plain = _parts(header[2])
            current = _indexed(plain[:-1], counts)
            if header[1] == "[[":
                counts[plain] = counts.get(plain, -1) + 1
                yield (*current, plain[-1]), number
            current = (*current, plain[-1], *([counts[plain]] if plain in counts else []))
            yield current, number
        elif assignment := _ASSIGNMENT.match(line):
            yield (*current, *_parts(assignment[1])), number


def _indexed(plain: Path, counts: Mapping[Path, int]) -> Path:
    """A header's path with the number of the last table in each list that it passes."""
    path: Path = ()
    for length in range(1, len(plain) + 1):
        path += (plain[length - 1], *([counts[plain[:length]]] if plain[:length] in counts else []))
    return path


def _parts(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _blank(token: re.Match[str]) -> str:
    """Comments and strings of several lines hold no key; strings of one line may be one."""
    if token[0].startswith(('"""', "'''")):
        return "\n" * token[0].count("\n")
    return "" if token[0].startswith("#") else token[0]
