"""Asked of an interpreter from inside: what imports there, what is installed, which requirements that satisfies. Run as a program, on its own.

Standard library alone: it looks at an interpreter whose packages are not this one's. One JSON document in, one out; what an
import prints goes to standard error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from typing import Any


def main() -> None:
    """{"modules": [...], "requirements": [...]} on standard input; the answer has a sentence for each that is wrong, and every distribution."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    answer = {
        "modules": _broken(asked["modules"]),
        "requirements": _unsatisfied(asked["requirements"]),
        "installed": sorted({(name, found.version) for found in importlib.metadata.distributions() if (name := found.metadata["Name"])}),
    }
    with out:
        json.dump(answer, out)
    os._exit(0)  # threads that an import has started are not waited for


def _broken(modules: list[str]) -> dict[str, str]:
    broken = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001  code of others: whatever it raises is the answer
            broken[module] = f"{type(error).__name__}: {error}"
    return broken


def _unsatisfied(requirements: list[str]) -> dict[str, str]:
    if not requirements:
        return {}
    try:
        parser: Any = importlib.import_module("packaging.requirements")
    except ImportError:
        try:
            parser = importlib.import_module("pip._vendor.packaging.requirements")
        except ImportError:
            return dict.fromkeys(requirements, "it cannot be checked without packaging; type: pip install packaging")
    found = {requirement: _problem(parser, requirement) for requirement in requirements}
    return {requirement: problem for requirement, problem in found.items() if problem}


def _problem(parser: Any, requirement: str, *, extra: str = "", seen: frozenset[tuple[str, str]] = frozenset()) -> str:
    """Why what is installed does not satisfy it, "" where it does. Of what a package needs itself, what its extras add is looked at."""
    if (requirement, extra) in seen:  # extras may name each other
        return ""
    try:
        wanted = parser.Requirement(requirement)
    except parser.InvalidRequirement as error:
        return f"it is no requirement: {error}"
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
        return ""
    try:
        found = importlib.metadata.distribution(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(found.version, prereleases=True):
        return f"{wanted.name} {found.version} is installed"
    seen |= {(requirement, extra)}
    problems = (
        _problem(parser, inner, extra=name, seen=seen)
        for name in sorted(wanted.extras)
        for inner in found.requires or ()
        if "extra" in inner
    )
    return next(filter(None, problems), "")


if __name__ == "__main__":
    main()
