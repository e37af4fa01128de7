"""The rules that single values of a function's declaration follow, as far as a type cannot say them. Knows no file and no folder."""

from __future__ import annotations

import re

REQUIREMENT_CHARACTERS = 500
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXTRAS = re.compile(r"\[[A-Za-z0-9._, -]*\]")
_VERSIONS = re.compile(r"(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9.*+!_-]*")


def is_requirement(text: str) -> bool:
    """Whether it is one requirement as packages write theirs: name, extras, versions, marker; no option, no address, no path."""
    if len(text) > REQUIREMENT_CHARACTERS or not text.isprintable() or not text.isascii():
        return False
    wanted, semicolon, marker = text.strip().partition(";")
    name = _PACKAGE.match(wanted)
    if name is None or (semicolon and not re.fullmatch(r"[A-Za-z0-9_.'\"<>=!~(), +*-]+", marker.strip())):
        return False
    rest = wanted[name.end() :].strip()
    if extras := _EXTRAS.match(rest):
        rest = rest[extras.end() :].strip()
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    return not rest or all(_VERSIONS.fullmatch(version.strip()) for version in rest.split(","))
