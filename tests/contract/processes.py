"""Looking at processes from outside, as the tests of a backend must: by pid or by a mark on their command line; zombies count as dead."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether it runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def marked(mark: str) -> set[int]:
    """The pids of all processes that run and have this text on their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                if mark.encode() in (entry / "cmdline").read_bytes() and is_alive(int(entry.name)):
                    found.add(int(entry.name))
    return found


def wait_for_end(pid: int, limit_s: float = 5.0) -> bool:
    """Whether a process ends within so long."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            select.select([descriptor], [], [], limit_s)
        finally:
            os.close(descriptor)
    return not is_alive(pid)


def wait_until_gone(mark: str, limit_s: float = 5.0) -> set[int]:
    """The marked processes that still run after so long; their ends are awaited, not polled for."""
    for pid in marked(mark):
        wait_for_end(pid, limit_s)
    return marked(mark)
