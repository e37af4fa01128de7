"""Puts the code of a function, and the packages that are its own, where imports find them. Knows how a fresh interpreter looks things up, no handler."""

from __future__ import annotations

import importlib
import os
import sys


class Conflict(ImportError):
    """A package of the function is another one than the environment has imported already, and one process can hold only one of them."""


def put_on_path(code: str, overlay: str) -> None:
    """The code first, the overlay ("": none) behind the standard library and before the environment's packages.

    Raises Conflict where what the overlay holds has been imported from elsewhere: its own would never be looked for.
    """
    if overlay:
        for module in modules_in(overlay):
            _refuse_other(module, overlay)
        packages = (index for index, path in enumerate(sys.path) if os.path.basename(path) in ("site-packages", "dist-packages"))
        sys.path.insert(next(packages, len(sys.path)), overlay)
    sys.path.insert(0, code)
    importlib.invalidate_caches()


def modules_in(folder: str) -> list[str]:
    """The names that can be imported from a folder, in order: its packages, modules and extension modules."""
    names = set()
    for entry in os.scandir(folder):
        name, _, ending = entry.name.partition(".")
        if name.isidentifier() and (ending == "py" or ending.endswith("so") or (not ending and entry.is_dir())):
            names.add(name)
    return sorted(names)


def _refuse_other(module: str, overlay: str) -> None:
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)  # a namespace package has none, and finds its new part by itself
    if origin is None or module in sys.stdlib_module_names:
        return
    raise Conflict(
        f"the function's dependencies bring a module {module} ({overlay}), but the runtime profile has imported {module} from {origin} already; "
        f"depend on what the profile has, or take {module} out of the profile's preload and warmup"
    )
