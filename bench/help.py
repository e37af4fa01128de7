"""How long until the command line answers? First output of `faas --help`, beside a bare interpreter and beside the libraries that it needs.

Whoever types a verb waits for every import before the first line of ours. Runs are interleaved, so that a busy host slows all
of them; the goal is 0.3 s, or three times a bare interpreter where that is more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import measure
from measure import BIN, Figure, Goal

BOUND_S = 0.3
TIMES_BARE = 3

COMMANDS: dict[str, list[str | Path]] = {
    "python -c pass": [sys.executable, "-c", "print()"],
    "import cyclopts, rich": [sys.executable, "-c", "import cyclopts, rich.console; print()"],
    "faas --help": [BIN / "faas", "--help"],
    "faas invoke --help": [BIN / "faas", "invoke", "--help"],
    "faas --version": [BIN / "faas", "--version"],
}


def first_output_s(command: list[str | Path]) -> float:
    """From the start of the process to its first byte; the process is then left to its end, and that must be a good one."""
    began = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise RuntimeError(f"{command} printed nothing")
        elapsed_s = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return elapsed_s


def measured(settings: argparse.Namespace) -> list[dict[str, Figure]]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for name, command in COMMANDS.items():
        first_output_s(command)  # the disk's part, and bytecode, are not what is asked
        times[name].clear()
    for _ in range(settings.rounds):
        for name, command in COMMANDS.items():
            times[name].append(first_output_s(command))
    return [{"command": name, **measure.spread_ms(values)} for name, values in times.items()]


def main() -> None:
    settings = measure.arguments(__doc__ or "", rounds=30)
    rows = measured(settings)
    p50_s = {str(row["command"]): float(row["p50_ms"]) / 1000 for row in rows}
    bound_s = max(BOUND_S, TIMES_BARE * p50_s["python -c pass"])
    goals = [Goal(name, p50_s[name], bound_s, unit=" s") for name in ("faas --help", "faas invoke --help")]
    measure.report("Help: the first output of the command line", rows, goals, settings=settings)


if __name__ == "__main__":
    main()
