"""`faas runs` and `faas why`: what ran, one run in full, and why an invocation waits or ended as it did. Knows how it is shown, not where it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import Id, Json, Where, console, print_json
from faas.units import format_cost, format_duration, format_size

if TYPE_CHECKING:
    from faas.calling.history import RunInFull, Why
    from faas.runs import LogLine, Run, Try

LINES = 1000
"""Of its log, in one run: `faas logs` has all."""
KEY_COLUMNS = 12


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Which:
    """Which runs are listed."""

    function: Annotated[str, Parameter(help="Only of this function.")] = ""
    tenant: Annotated[str, Parameter(help="Only of this tenant.")] = ""
    outcome: Annotated[str, Parameter(help="Only with this outcome; open: not ended yet.")] = ""
    since: Annotated[str | None, Parameter(help='Not before: how long ago, like "10m", or a time.')] = None
    until: Annotated[str | None, Parameter(help="Not after: as --since.")] = None
    limit: Annotated[int, Parameter(help="So many at most, up to 500.")] = 50


def runs(
    invocation: Annotated[str | None, Parameter(help="Only this one, in full.")] = None,
    *,
    which: Which = Which(),  # frozen
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """List what ran on any node, or show one run in full."""
    if invocation is None:
        return asyncio.run(_list(which, where, as_json=json))
    return asyncio.run(_show(invocation, where, as_json=json))


def why(
    invocation: Id,
    *,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Say why an invocation waits, runs, or ended as it did."""
    return asyncio.run(_why(invocation, where, as_json=json))


# ---------------------------------------------------------------- the list


async def _list(which: Which, where: Where, *, as_json: bool) -> int:
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        found = await client.runs(
            function=which.function,
            tenant=which.tenant,
            outcome=which.outcome,
            since=which.since,
            until=which.until,
            limit=which.limit,
        )
    if as_json:
        print_json([_as_json(run) for run in found])
    elif found:
        _print_table(found)
    else:
        print("no run fits")
    return 0


def _as_json(run: Run) -> dict[str, object]:
    """Every field; moments as RFC 3339, "" where there is none; `outcome` "open" where it has not ended."""
    from faas.calling.history import moment

    fields = {name: getattr(run, name) for name in run.__struct_fields__ if not name.endswith("_ms")}
    return {**fields, "outcome": run.outcome or "open", "accepted_at": moment(run.accepted_ms), "ended_at": moment(run.ended_ms)}


def _print_table(found: list[Run]) -> None:
    from rich.table import Table

    from faas.calling.history import moment

    table = Table(box=None, pad_edge=False)
    for heading in ("when", "invocation", "function", "outcome", "attempts", "start", "queue", "load", "run", "node"):
        right = heading in ("attempts", "queue", "load", "run")
        table.add_column(heading, no_wrap=heading != "outcome", justify="right" if right else "left")
    for run in found:
        times = [_us(value) if run.attempts else "" for value in (run.queue_us, run.load_us, run.run_us)]
        name = run.function if run.tenant == "default" else f"{run.tenant}/{run.function}"
        table.add_row(
            moment(run.ended_ms or run.accepted_ms)[:19], run.invocation, name, _end(run), str(run.attempts), run.start, *times, run.node
        )
    console().print(table)


def _end(run: Run | Try) -> str:
    from faas.runs import ending

    return ending(run.outcome or "open", run.reason, between=" ")


def _us(microseconds: int) -> str:
    return format_duration(microseconds / 1e6) if microseconds else "0"


# ---------------------------------------------------------------- one in full


async def _show(invocation: str, where: Where, *, as_json: bool) -> int:
    from faas.client import connect

    lines: list[LogLine] = []
    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        full = await client.run(invocation)
        async for line in client.logs(full.run.function, tenant=full.run.tenant, invocation=invocation):
            lines.append(line)
            if len(lines) >= LINES:
                break
    if as_json:
        attempts, rest = [one for one in full.tries if one.kind == "attempt"], [one for one in full.tries if one.kind != "attempt"]
        print_json(
            {
                **_as_json(full.run),
                "tries": [msgspec.to_builtins(one) for one in (*attempts, *rest)],
                "held": msgspec.to_builtins(full.held) if full.held is not None else None,
                "holder": full.holder,
                "dead_letter": msgspec.to_builtins(full.letter) if full.letter is not None else None,
                "log": [msgspec.to_builtins(line) for line in lines],
            }
        )
    else:
        print("\n".join(_in_full(full, lines)))
    return 0


def _in_full(full: RunInFull, lines: list[LogLine]) -> Iterator[str]:
    from faas.calling.history import moment
    from faas.cli.logs import in_words

    run = full.run
    yield f"{run.invocation} of {run.tenant}/{run.function}: {_end(run)}{f': {run.detail}' if run.detail else ''}"
    event = f"{run.event_id} on {run.subject or 'a synchronous call'}"
    pairs = {
        "version": run.version,
        "event": f"{event} ({run.stream} {run.sequence})" if run.stream else event if run.event_id else "",
        "accepted": moment(run.accepted_ms),
        "ended": moment(run.ended_ms),
        "redrive of": run.redrive_of,
        "trace": run.traceparent,
        "now": f"{full.held.stage} on {full.holder}{f', worker {full.held.worker}' if full.held.worker else ''}" if full.held else "",
        "dead letter": f"{full.letter.stream} {full.letter.sequence}: {full.letter.reason}" if full.letter else "",
    }
    yield from (f"  {key.ljust(KEY_COLUMNS)} {value}" for key, value in pairs.items() if value)
    for one in full.tries:
        yield ""
        yield from _try(one)
    if lines:
        yield ""
        yield from map(in_words, lines)


def _try(one: Try) -> Iterator[str]:
    what = f"attempt {one.attempt}" if one.kind == "attempt" else f"{one.kind} for attempt {one.attempt}"
    yield f"{what}: {_end(one)}{f': {one.detail}' if one.detail else ''}"
    yield f"  {one.started_at} to {one.ended_at} on {one.node}, start {one.start or '-'}"
    yield f"  queue {_us(one.queue_us)}, load {_us(one.load_us)}, run {_us(one.run_us)}"
    meters = "".join(f", {name} {count}" for name, count in one.meters.items())
    cost = format_cost(one.cost_nanousd) if one.billable else "not billed"
    yield f"  cpu {_us(one.cpu_us)}, memory {format_size(one.memory_peak_bytes)}, in {one.bytes_in} B, out {one.bytes_out} B, {cost}{meters}"


# ---------------------------------------------------------------- why


async def _why(invocation: str, where: Where, *, as_json: bool) -> int:
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        said = await client.why(invocation)
    if as_json:
        print_json(msgspec.to_builtins(said))
    else:
        print("\n".join(_in_words(said)))
    return 0


def _in_words(said: Why) -> Iterator[str]:
    yield f"{said.invocation} of {said.tenant}/{said.function} {said.state}: {said.because}"
    yield from (f"  {one}" for one in said.chain)
