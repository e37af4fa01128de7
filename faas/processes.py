"""What every child process of a node has in common: it dies with the node. Linux only."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: the child may only call it


def die_with_parent() -> None:
    """For `preexec_fn`: SIGKILL this process when the thread that started it ends; so children are started from the main thread.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
