"""What was measured of a function, and what suits it: its profile, its mode, its limits. Pure arithmetic on usage records; reads no bus.

With fewer than ENOUGH attempts it advises nothing. The rules, each with its number:

*Mode.* On demand, an event waits while a worker loads; kept warm, a worker holds memory while nothing runs. What is set suits where
at most COLD_SHARE of the attempts had to load; on demand suits where loading takes less than NOTICEABLE_US, or less than running
(p50 against p50). Else both costs are set against each other over the time that the records span: the loads, as many as there
were times the p50 of `load_us`, against the idle time for which a worker would have held its memory. Up to HOLD_PER_LOAD seconds
of idle memory are worth one second of loading that somebody waited for; beyond that, on demand suits. Then `keep_alive` is GAPS
times the mean gap between attempts, so that nearly every next event finds the worker (of events that come independently e^-3,
5 %, come later), or, where that is above KEEP_ALIVE_LIMIT_S or `keep_alive` is as long already, `min_warm` is one more.

*Limits.* `limits.memory` is tight where the highest peak is within TIGHT of it (a crash is near), and wide where it is above
WIDE times the peak and more than WIDE_AT_LEAST_BYTES above it; advised is HEADROOM times the peak, rounded up to 64 MiB.
`limits.timeout` is tight where p95 of running is within TIGHT of it.

*Profile.* What a function imports is known from its source, and what it needs at run time is not: a module of the profile's
preload that the source never names is not needed directly. So `ai` is called too much only where no source file imports a module
that `ai` has and `standard` lacks, and never because of the memory used; the other way round, an import that only `ai` has
is named. Of a lazy or computed import nothing is known, and that is said.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct

from faas.model import FunctionSpec, Start, UsageRecord
from faas.syntax import parse
from faas.units import format_duration, format_size

ENOUGH = 20
COLD_SHARE = 0.2
NOTICEABLE_US = 100_000
HOLD_PER_LOAD = 3600
GAPS = 3
KEEP_ALIVE_LIMIT_S = 3600
TIGHT = 0.8
WIDE = 4
WIDE_AT_LEAST_BYTES = 256 * 2**20
HEADROOM = 1.5
MEMORY_STEP_BYTES = 64 * 2**20
STARTS: tuple[Start, ...] = ("warm", "spare", "fork", "cold")


class Spread(Struct, frozen=True):
    """Two percentiles of one figure, in microseconds; 0 where nothing was measured."""

    p50_us: int
    p95_us: int


class Measured(Struct, frozen=True, kw_only=True):
    """What the usage records of one function say. `span_s` lies between the first and the last start of an attempt.

    `load` counts attempts that loaded, the others loaded nothing; `cpu` is of the whole attempts, in microseconds too.
    """

    attempts: int
    span_s: float
    per_hour: float  # attempts, over that span; 0 where it is too short to say
    starts: Mapping[str, int]
    ended_badly: int
    queue: Spread
    load: Spread
    run: Spread
    cpu: Spread
    memory_peak_bytes: int
    oom: int


class Advice(Struct, frozen=True, kw_only=True):
    """One thing to change, or that suits. `key` is that of function.toml; `set_to` what to write there, "" where nothing is to be changed."""

    key: str
    because: str
    set_to: str = ""


def measure(records: Iterable[UsageRecord]) -> Measured:
    """The figures of the attempts among the records; a record that comes twice counts once, and one taken back not at all."""
    last = {record.record_id: record for record in records if record.kind == "attempt"}
    attempts = sorted((record for record in last.values() if record.record_type != "retraction"), key=lambda record: record.started_at)
    span_s = _span_s(attempts)
    return Measured(
        attempts=len(attempts),
        span_s=span_s,
        per_hour=3600 * (len(attempts) - 1) / span_s if span_s > 0 else 0.0,
        starts={start: sum(record.start == start for record in attempts) for start in STARTS},
        ended_badly=sum(record.outcome != "succeeded" for record in attempts),
        queue=_spread([record.queue_us for record in attempts]),
        load=_spread([record.load_us for record in attempts if record.load_us]),
        run=_spread([record.run_us for record in attempts if record.run_us]),
        cpu=_spread([record.cpu_us for record in attempts if record.run_us]),
        memory_peak_bytes=max((record.memory_peak_bytes for record in attempts), default=0),
        oom=sum(record.reason == "oom" for record in attempts),
    )


def _span_s(attempts: Sequence[UsageRecord]) -> float:
    if len(attempts) < 2:
        return 0.0
    first, last = (datetime.fromisoformat(record.started_at) for record in (attempts[0], attempts[-1]))
    return (last - first).total_seconds()


def _spread(values: Sequence[int]) -> Spread:
    """Nearest rank, so that both are figures that were measured."""
    if not values:
        return Spread(0, 0)
    ordered = sorted(values)
    return Spread(*(ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.95)))


# ---------------------------------------------------------------- mode


def mode(measured: Measured, *, min_warm: int, keep_alive_s: float) -> Advice:
    """Kept warm or on demand, by what loading took against the memory that would have been held."""
    loads = sum(count for start, count in measured.starts.items() if start != "warm")
    load_s, run_s = measured.load.p50_us / 1e6, measured.run.p50_us / 1e6
    loaded = f"{loads} of {measured.attempts} attempts had to load ({format_duration(load_s)}; running takes {format_duration(run_s)})"
    if loads <= COLD_SHARE * measured.attempts:
        return Advice(key="scale.keep_alive", because=f"{loaded}: what is set suits")
    if load_s <= max(NOTICEABLE_US / 1e6, run_s):
        return Advice(key="scale.keep_alive", because=f"{loaded}: loading is short, so that on demand suits")
    loading_s, idle_s = loads * load_s, max(0.0, measured.span_s - measured.attempts * run_s)
    held = f"a worker kept warm would have held {format_size(measured.memory_peak_bytes)} idle for {format_duration(idle_s)}"
    costs = f"{loaded}, {format_duration(loading_s)} in all; {held}"
    if idle_s > HOLD_PER_LOAD * loading_s:
        return Advice(key="scale.keep_alive", because=f"{costs}: on demand suits")
    wanted_s = GAPS * measured.span_s / (measured.attempts - 1)
    if keep_alive_s < wanted_s <= KEEP_ALIVE_LIMIT_S:
        return Advice(key="scale.keep_alive", because=costs, set_to=_duration(wanted_s))
    return Advice(key="scale.min_warm", because=costs, set_to=str(min_warm + 1))


def _duration(seconds: float) -> str:
    return f"{math.ceil(seconds)}s" if seconds < 60 else f"{math.ceil(seconds / 60)}m"


# ---------------------------------------------------------------- limits


def limits(measured: Measured, *, memory_bytes: int, timeout_s: float) -> list[Advice]:
    """Whether the memory limit and the timeout fit what was used."""
    peak, wanted = measured.memory_peak_bytes, _memory_for(measured.memory_peak_bytes)
    used = f"the highest peak was {format_size(peak)} of {format_size(memory_bytes)}"
    found = []
    if measured.oom:
        found.append(Advice(key="limits.memory", because=f"{measured.oom} attempts ended as oom; {used}", set_to=_size(2 * memory_bytes)))
    elif peak >= TIGHT * memory_bytes:
        found.append(Advice(key="limits.memory", because=f"{used}: a crash is near", set_to=_size(wanted)))
    elif memory_bytes > WIDE * peak and memory_bytes - peak > WIDE_AT_LEAST_BYTES and 0 < wanted < memory_bytes:
        found.append(Advice(key="limits.memory", because=f"{used}: far too wide", set_to=_size(wanted)))
    elif peak:
        found.append(Advice(key="limits.memory", because=f"{used}: it suits"))
    if measured.run.p95_us >= TIGHT * timeout_s * 1e6:
        because = f"95 of 100 attempts run for up to {format_duration(measured.run.p95_us / 1e6)} of {format_duration(timeout_s)}"
        found.append(Advice(key="limits.timeout", because=because, set_to=f"{math.ceil(2 * timeout_s)}s"))
    return found


def _memory_for(peak_bytes: int) -> int:
    return math.ceil(HEADROOM * peak_bytes / MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES


def _size(size_bytes: int) -> str:
    return f"{math.ceil(size_bytes / 2**20)}MiB"


# ---------------------------------------------------------------- profile


def imported_modules(sources: Iterable[bytes]) -> frozenset[str]:
    """Top-level names that the sources import by a statement, wherever it stands; what does not parse imports nothing."""
    found: set[str] = set()
    for source in sources:
        try:
            tree = parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return frozenset(found)


def profile(spec: FunctionSpec, imported: frozenset[str], packages: Mapping[str, frozenset[str]]) -> Advice | None:
    """Whether a smaller profile has all that is imported, or only another one has it; None where that cannot be told.

    `packages`: profile -> modules that its lock brings. Packages of the function's own may bring any module.
    """
    here = packages.get(spec.runtime)
    if here is None or spec.dependencies:
        return None
    needed = imported & frozenset[str]().union(*packages.values())
    said = f"its source imports {', '.join(sorted(needed)) or 'no package of any profile'}, as far as import statements tell"
    if not needed <= here:
        able = sorted(name for name, has in packages.items() if needed <= has)
        return Advice(key="runtime", because=f"{said}, and {spec.runtime} has not all of it", set_to=able[0]) if able else None
    smaller = sorted((len(has), name) for name, has in packages.items() if needed <= has and len(has) < len(here))
    if smaller:
        return Advice(key="runtime", because=said, set_to=smaller[0][1])
    return Advice(key="runtime", because=f"{said}: {spec.runtime} suits")
