"""`faas functions`: what is served, what is invalid and why, and which limits this machine cannot enforce."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import Json, Where, console, print_json
from faas.errors import NoSuchFunction
from faas.model import FunctionReport


def functions(
    name: Annotated[str | None, Parameter(help="Only this one.")] = None,
    *,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """List the functions of all nodes."""
    reports = asyncio.run(_reports(where))
    if name is not None:
        reports = [report for report in reports if report.name == name]
        if not reports:
            raise NoSuchFunction(f"no function {name}; `faas functions` lists what there is")
    if json:
        print_json([_as_json(report) for report in reports])
    else:
        _print_table(reports)
    return 0


async def _reports(where: Where) -> list[FunctionReport]:
    from faas.client import connect

    async with connect(where.nats, state=where.state) as client:
        return await client.functions()


def _as_json(report: FunctionReport) -> dict[str, object]:
    document = {"name": report.name, "tenant": report.tenant, "version": report.version, "runtime": report.runtime, "state": report.state}
    more = {"error": report.error} if report.error else {}
    return {**document, **more, "triggers": msgspec.to_builtins(report.triggers), "not_enforced": list(report.not_enforced)}


def _print_table(reports: list[FunctionReport]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("function", "tenant", "runtime", "version", "state", "triggers"):
        table.add_column(heading, no_wrap=heading != "triggers")
    for report in reports:
        triggers = ", ".join(t.subject if t.delivery == "at-least-once" else f"{t.subject} (at most once)" for t in report.triggers)
        table.add_row(report.name, report.tenant, report.runtime, report.version, report.state, triggers)
    out = console()
    out.print(table)
    for report in reports:
        if report.error:
            out.print(f"{report.name}: {report.error}")
    missing = sorted({limit for report in reports for limit in report.not_enforced})
    if missing:
        out.print(f"not enforced on this machine (control groups are not writable): {', '.join(f'limits.{limit}' for limit in missing)}")
