"""Which folders a function's `[[mount]]` means, and their digests: of contents where the folder is the function's, else of sizes and times.

Reads what it digests and writes nothing; whoever stages a mount copies it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from faas.errors import SpecInvalid
from faas.model import FunctionSpec, MountedFolder
from faas.registry.bundle import Declaration
from faas.registry.tree import files_below, open_regular

MOUNT_FILES_LIMIT = 100_000
CHUNK_BYTES = 2**20


def inside_sources(spec: FunctionSpec) -> frozenset[str]:
    """The mounts that lie inside of the function's folder, as paths in it."""
    return frozenset(mount.source for mount in spec.mounts if not mount.source.startswith("/"))


def find_mounts(declaration: Declaration, spec: FunctionSpec, allowed: Iterable[str]) -> tuple[MountedFolder, ...]:
    """The folders of a function's mounts with their digests, in order. Raises SpecInvalid, which names the mount."""
    found = []
    for index, mount in enumerate(spec.mounts):
        try:
            if mount.source.startswith("/"):
                found.append(_of_the_node(mount.target, mount.source, tuple(allowed)))
            elif declaration.is_single_file:
                raise SpecInvalid(mount.source, "", "must be absolute: a single file has no folder of its own; or make it a folder")
            else:
                found.append(_of_the_function(mount.target, declaration.entry, mount.source))
        except OSError as error:
            problem = f"{mount.source}: cannot be read: {error.strerror}"
            raise SpecInvalid(declaration.file, f"mount[{index}].source", problem) from error
        except SpecInvalid as error:
            raise SpecInvalid(declaration.file, f"mount[{index}].source", f"{error.file}: {error.problem}") from error
    return tuple(found)


def _of_the_function(target: str, folder: Path, source: str) -> MountedFolder:
    path = folder
    for part in source.split("/"):
        path /= part
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise SpecInvalid(source, "", "is no folder; links are none")
    return MountedFolder(target=target, source=str(path.resolve()), digest=digest_of_contents(path, source), copied=True)


def _of_the_node(target: str, source: str, allowed: tuple[str, ...]) -> MountedFolder:
    if not os.path.isdir(source):
        raise SpecInvalid(source, "", "is no folder of this machine")
    if not is_allowed(source, allowed):
        raise SpecInvalid(
            source, "", f"lies in no folder that this node allows; add it to mounts under [node] in faas.toml: {_shown(allowed)}"
        )
    return MountedFolder(target=target, source=source, digest=digest_of_times(Path(source), source, allowed), copied=False)


def _shown(allowed: tuple[str, ...]) -> str:
    return f"there are {', '.join(allowed)}" if allowed else "there are none"


def is_allowed(path: str, allowed: Iterable[str]) -> bool:
    """Whether a path, its links resolved, is one of the allowed folders or lies below one."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in allowed)


def digest_of_contents(folder: Path, label: str) -> str:
    """SHA-256 in hex over relative paths and contents of all files. Raises SpecInvalid for what is no regular file, OSError."""
    digest = MountDigest()
    for inside, path in contents(folder, label):
        with open(open_regular(path, f"{label}/{inside}"), "rb") as file:
            digest.add(inside, hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def contents(folder: Path, label: str) -> Iterator[tuple[str, Path]]:
    """Every file of a mount, hidden ones too, in the order of its digest."""
    return files_below(folder, label=label, limit=MOUNT_FILES_LIMIT)


def digest_of_times(folder: Path, label: str, allowed: Iterable[str]) -> str:
    """SHA-256 in hex over relative path, size and mtime_ns of all files: weights may be tens of GB, and reading them all takes minutes.

    A link counts with what it leads to, which must be allowed as well: model hubs keep their files so.
    Raises SpecInvalid, OSError.
    """
    digest = MountDigest()
    allowed = tuple(allowed)
    for inside, path in contents(folder, label):
        if path.is_symlink() and not is_allowed(str(path), allowed):
            raise SpecInvalid(f"{label}/{inside}", "", "is a link that leads out of what this node allows")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not path.is_symlink():
            raise SpecInvalid(f"{label}/{inside}", "", "is no regular file")
        digest.add(inside, b"%d %d" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


class MountDigest:
    """Adds up a mount, file by file in order; the same for whoever reads it and whoever copies it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, inside: str, what: bytes) -> None:
        for part in (os.fsencode(inside), what):
            self._digest.update(len(part).to_bytes(8, "big") + part)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def copy_hashed(path: Path, label: str, write: Callable[[bytes], object]) -> bytes:
    """Hand a file's content to `write` in pieces; its SHA-256, as `digest_of_contents` takes it. Raises SpecInvalid, OSError."""
    digest = hashlib.sha256()
    with open(open_regular(path, label), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            write(chunk)
    return digest.digest()
