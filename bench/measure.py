"""What the benchmarks share: a node and a bare server to measure, percentiles, facts of the host, and the report.

Knows no question: each file beside this one asks one, prints a table, and with `--json FILE` writes the same figures. A
goal that is missed is printed as missed; nothing here asserts.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent

READY_S = 120
STOP_S = 20
BUILD_S = 900
"""For a first event: the environment of its profile may have to be built, over a slow network."""

Figure = float | int | str


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed, interpolated between neighbours; of none, nan."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread_ms(values_s: Sequence[float]) -> dict[str, Figure]:
    """p50, p90, p99 in milliseconds and how many there were."""
    figures: dict[str, Figure] = {"n": len(values_s)}
    return figures | {name: 1000 * percentile(values_s, share) for name, share in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99))}


# ---------------------------------------------------------------- the report


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the verdict: `measured` is to be at most, or at least, `bound`."""

    what: str
    measured: float
    bound: float
    at_most: bool = True
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def __str__(self) -> str:
        relation = "<=" if self.at_most else ">="
        return f"{'met   ' if self.met else 'MISSED'}  {self.what}: {shown(self.measured)}{self.unit} (goal {relation} {shown(self.bound)}{self.unit})"


def shown(figure: Figure) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:,.0f}" if isinstance(figure, int) or abs(figure) >= 1000 else f"{figure:.3g}"


def table(rows: Sequence[Mapping[str, Figure]]) -> str:
    """The rows as aligned text; the columns are all the keys, in the order in which they first come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([shown(row[column]) if column in row else "" for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def arguments(description: str, **defaults: float | int | str) -> argparse.Namespace:
    """The command line of a benchmark: one option per default, `--json FILE` and `--state DIR` beside them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=" ")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--state", type=Path, help="state folder to keep, so that a later run finds its environments built; default: a scratch one"
    )
    return parser.parse_args()


def report(question: str, rows: Sequence[Mapping[str, Figure]], goals: Sequence[Goal], *, settings: argparse.Namespace) -> None:
    """Print the table, the goals and the host, and write them where `--json` says."""
    host = host_facts()
    print(f"\n{question}\n\n{table(rows)}\n")
    print(*goals, sep="\n")
    print("\n" + ", ".join(f"{key} {value}" for key, value in host.items()))
    if settings.json:
        document = {
            "question": question,
            "host": host,
            "settings": {key: value for key, value in vars(settings).items() if not isinstance(value, Path) and value is not None},
            "rows": rows,
            "goals": [{"what": g.what, "measured": g.measured, "bound": g.bound, "at_most": g.at_most, "met": g.met} for g in goals],
        }
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(document, indent=1, default=str) + "\n")


def host_facts() -> dict[str, Figure]:
    """What a figure depends on: cores, processor, kernel, versions, commit, date, and how loaded the host was."""
    processor = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    server = subprocess.run([BIN / "nats-server", "--version"], capture_output=True, text=True, check=False).stdout.split()
    changed = _git("status", "--porcelain", "--", "faas")
    return {
        "cores": os.cpu_count() or 0,
        "processor": processor[0] if processor else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nats_server": server[-1].lstrip("v") if server else "none",
        **{name.replace("-", "_"): importlib.metadata.version(name) for name in ("nats-py", "uvloop", "msgspec")},
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if changed else ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], capture_output=True, text=True, check=False, cwd=HERE.parent).stdout.strip()


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True)
class Node:
    """A running node: its process, the bus with its token, and its state folder."""

    pid: int
    url: str
    state: Path


def function(folder: Path, name: str, *, handler: str, spec: str = "") -> None:
    """Write one function into a functions folder."""
    (folder / name).mkdir(parents=True)
    (folder / name / "handler.py").write_text(handler)
    (folder / name / "function.toml").write_text(spec)


@contextmanager
def node(
    functions: Path, *, state: Path, config: str = "", program: Sequence[str | Path] = (BIN / "faas",), options: Sequence[str] = ()
) -> Iterator[Node]:
    """`faas up` on free ports as a process of its own; what it says goes to STATE/bench.log. Raises RuntimeError where it does not get ready."""
    state.mkdir(parents=True, exist_ok=True)
    command = [*program, "up", *options, "--bus", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state", state, "--functions", functions]
    if config:
        (state / "bench.toml").write_text(config)
        command += ["--config", state / "bench.toml"]
    with open(state / "bench.log", "wb") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
    try:
        ready = _await_ready(process, state)
        yield Node(process.pid, ready["nats"], state)
    finally:
        stop(process)


def _await_ready(process: subprocess.Popen[bytes], state: Path) -> dict[str, str]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ready: dict[str, str] = json.loads((state / "node.json").read_text())
        except (OSError, ValueError):
            ready = {}
        if ready and int(ready["pid"]) == process.pid:
            return ready
        time.sleep(0.05)
    raise RuntimeError("the node did not get ready: " + (state / "bench.log").read_text(errors="replace")[-2000:])


@contextmanager
def python(script: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that prints one line when it is ready, and runs until the block ends."""
    process = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"{script.name} {' '.join(words)} did not get ready")
        yield process
    finally:
        stop(process)
        if process.stdout is not None:
            process.stdout.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def scratch(state: Path | None) -> Iterator[tuple[Path, Path]]:
    """(an empty functions folder, a state folder): both scratch, the second one kept where it was named."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faas-bench-")))
        (folder / "functions").mkdir()
        yield folder / "functions", (state or folder / "state").resolve()


# ---------------------------------------------------------------- processes, as /proc shows them


def family(pid: int) -> list[int]:
    """A process and all its living descendants, those in PID namespaces of their own included."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, user and system; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scheduled_s(pid: int) -> float:
    """Processor time of a process in the scheduler's nanoseconds, over its living threads; `cpu_s` cannot see below its tick of 10 ms."""
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    except OSError:
        return total / 1e9
    return total / 1e9


class Others:
    """How many cores processes outside the benchmark used since it was made: what alternating blocks cannot take out of a comparison.

    A side that needs both cores loses to a neighbour what one that needs a single core does not; and on a busy host, whose cores never
    halt, a lone request is faster. Everything that a benchmark starts is below its own process.
    """

    def __init__(self) -> None:
        self._began, self._busy_s = time.monotonic(), _busy_s()
        self._own_s = {pid: scheduled_s(pid) for pid in family(os.getpid())}

    def cores(self) -> float:
        own = sum(max(0.0, scheduled_s(pid) - self._own_s.get(pid, 0.0)) for pid in family(os.getpid()))
        return max(0.0, (_busy_s() - self._busy_s - own) / (time.monotonic() - self._began))


def _busy_s() -> float:
    """Processor time of the whole host that was not idle."""
    user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def private_bytes(pid: int) -> tuple[int, int]:
    """(clean, dirty) memory that no other process maps. Clean pages are files', here only by being the sole reader; dirty ones are its own for good."""
    fields = {line.split()[0]: 1024 * int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]}
    return fields["Private_Clean:"], fields["Private_Dirty:"]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
