"""What a handler has of its secrets: `ctx.secrets`, and a file for each, in memory and for this process and its children alone.

The files are 0400 in a folder of this worker's own: on a tmpfs that only its mount namespace has, where that is permitted, else in
the folder that the node made. A process that holds secrets shows nothing of itself in /proc to others of its user.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from faas.worker import wire

_PR_SET_DUMPABLE = 4
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 16384, 1 << 19
_TMPFS = b"mode=0700,size=1m,nr_inodes=256"
_libc = ctypes.CDLL(None, use_errno=True)


class Secrets(Mapping[str, str]):
    """The secrets that `secrets = [...]` of the function names, by name, as text. Printing it shows their names alone.

    `folder` has a file of each name, for libraries that want a path; in a test without a node it is None.
    """

    __slots__ = ("_values", "folder")

    def __init__(self, values: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
        self._values, self.folder = dict(values or {}), folder

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f'{name!r} is no secret of this function; name it in secrets = ["{name}"] of function.toml') from None

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<secrets {', '.join(self._values) or 'none'}>"


def receive(values: Mapping[str, str], folder: str) -> Secrets:
    """Write a file for each, which no other user can read, and close this process to the others of its own. Raises OSError, WireError."""
    if not values:
        return Secrets()
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _own_tmpfs(folder)
    for name, value in values.items():
        if not name or "/" in name or name.startswith("."):
            raise wire.WireError(f"refused secret {name[:80]!r}")
        descriptor = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with open(descriptor, "wb") as file:
            file.write(value.encode("utf-8", "surrogatepass"))
    return Secrets(values, Path(folder))


def _own_tmpfs(folder: str) -> bool:
    """Put a tmpfs in place of the folder that nobody outside of this process and its children sees; False where that is not permitted."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        return False
    if _libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0:  # else it would show in the namespace that this one is a copy of
        return False
    return bool(_libc.mount(b"faas", os.fsencode(folder), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, _TMPFS) == 0)
