"""What an examination finds, and how one is run: every probe at once, each in a thread that nobody waits for longer than it may take."""

from __future__ import annotations

import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from msgspec import Struct

WITHIN_S = 15.0
"""For all probes together, which run at once: each bounds what it asks for, and a disk that hangs bounds nothing."""

State = Literal["ok", "warning", "problem"]


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `detail` says how it is, `fix` what to type where that should be otherwise."""

    name: str
    state: State
    detail: str
    fix: str = ""


Probe = Callable[[], Iterable[Finding]]


def ok(name: str, detail: str) -> Finding:
    return Finding(name=name, state="ok", detail=detail)


def warning(name: str, detail: str, fix: str) -> Finding:
    return Finding(name=name, state="warning", detail=detail, fix=fix)


def problem(name: str, detail: str, fix: str) -> Finding:
    return Finding(name=name, state="problem", detail=detail, fix=fix)


def examine(probes: Mapping[str, Probe], *, within_s: float = WITHIN_S) -> list[Finding]:
    """What every probe finds, in their order; one that fails or takes too long is a finding itself.

    On daemon threads: a system call on a dead disk cannot be interrupted, and must not keep the process.
    """
    found: dict[str, list[Finding]] = {}

    def run(name: str, probe: Probe) -> None:
        try:
            found[name] = list(probe())
        except Exception as error:  # noqa: BLE001  # the doctor is asked when things are broken
            found[name] = [problem(name, f"cannot be examined: {str(error) or type(error).__name__}", "")]

    sysconfig.get_config_vars()  # looked up by several probes, and its first call is not safe in threads before Python 3.12
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in probes.items()]
    for thread in threads:
        thread.start()
    until = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = {name: [problem(name, f"did not answer within {within_s:g} s", "")] for name in probes}
    return [finding for name in probes for finding in found.get(name, late[name])]


def output_of(*command: str, within_s: float = 5.0) -> tuple[bool, str]:
    """(whether it succeeded, its last line or why there is none) of a program that is asked about itself."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=within_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {within_s:g} s"
    except OSError as error:
        return False, error.strerror or str(error)
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    return done.returncode == 0, lines[-1].strip() if lines else ""
