"""What a node asks of the kernel for its processes, looked at from another process of the same user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from faas.processes import parent_of

PROGRAM = """
import ctypes, os, sys
from faas.processes import show_nothing
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after an exec: becoming another user closes it by itself
if sys.argv[1] == "hidden":
    show_nothing()
watched = os.getpid()
if os.fork() == 0:
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    for name in ("environ", "maps"):  # mem alone is closed by more than this, where Yama is
        try:
            open(f"/proc/{watched}/{name}", "rb").close()
            print(name, "opened")
        except PermissionError:
            print(name, "refused")
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(("how", "said"), [("hidden", "refused"), ("open", "opened")])
def test_a_process_that_shows_nothing_is_closed_to_others_of_its_user(how: str, said: str) -> None:
    """Functions run as the node's user, and its memory holds every secret; that it is open otherwise shows that this closes it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [f"environ {said}", f"maps {said}"]


def test_the_parent_of_a_process_is_who_started_it_and_nobody_once_it_is_gone() -> None:
    """A worker is believed because of who forked it."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert parent_of(child.pid) == os.getpid()

    child.communicate(b"\n")

    assert parent_of(child.pid) == 0
