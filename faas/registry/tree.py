"""Walks a folder that anybody may have written: in one order everywhere, without recursion, bounded in depth and number; reads nothing that blocks.

Knows no function: bundles, mounts and their copies are made of what it finds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from faas.errors import SpecInvalid
from faas.units import format_size

DEPTH_LIMIT = 64


def files_below(folder: Path, *, label: str, limit: int, skip: Callable[[str], bool] = lambda inside: False) -> Iterator[tuple[str, Path]]:
    """Every entry that is no folder, links included, with its path inside by forward slashes; in order.

    What `skip` says of a path inside holds for all below it; `limit` counts files and folders. Raises SpecInvalid, which names `label`, and OSError.
    """
    found = 0
    todo: list[tuple[str, Path]] = [("", folder)]
    while todo:
        inside, path = todo.pop()
        found += 1
        if found > limit:
            raise SpecInvalid(label, "", f"has more than {limit} files and folders; keep data in a folder that [[mount]] names")
        if inside and (path.is_symlink() or not path.is_dir()):
            yield inside, path
            continue
        if inside.count("/") >= DEPTH_LIMIT:
            raise SpecInvalid(label, "", f"has folders more than {DEPTH_LIMIT} deep")
        names = sorted(os.listdir(path), reverse=True)
        children = [(f"{inside}/{name}".lstrip("/"), path / name) for name in names]
        todo += [(child, at) for child, at in children if not skip(child)]


def open_regular(path: Path, label: str) -> int:
    """A descriptor of a regular file; never one of a link, and never waits for a pipe. Raises SpecInvalid, OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise SpecInvalid(label, "", "is no regular file; copy what it should hold")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # changed since
        os.close(descriptor)
        raise SpecInvalid(label, "", "is no regular file; copy what it should hold")
    return descriptor


def read_regular(path: Path, label: str, limit_bytes: int) -> bytes:
    """The whole of a regular file. Raises SpecInvalid where it is none or larger, and OSError."""
    with open(open_regular(path, label), "rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise SpecInvalid(label, "", f"has {format_size(max(path.lstat().st_size, len(data)))}; {format_size(limit_bytes)} at most")
    return data
