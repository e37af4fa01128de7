"""What a node asks of the kernel for its processes: children die with it, and it shows nothing of itself. Linux only."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: the child may only call it


def die_with_parent() -> None:
    """For `preexec_fn`: SIGKILL this process when the thread that started it ends; so children are started from the main thread.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def show_nothing() -> None:
    """Close /proc of this process, its memory and its environment, to others of its user; root and whoever may trace it still look. Source: prctl(2)."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def parent_of(pid: int) -> int:
    """The pid of a process' parent, as this machine counts; 0 where there is none any more. Source: proc_pid_stat(5)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
