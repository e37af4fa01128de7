"""`faas functions`: what is served, what is invalid and why, one function in full, and which limits this machine cannot enforce."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Annotated

from cyclopts import Parameter

from faas.cli.options import Json, Where, console, print_json
from faas.listed import as_json
from faas.model import FunctionReport
from faas.triggers import Trigger

KEY_COLUMNS = 24


def functions(
    name: Annotated[str | None, Parameter(help="Only this one, in full.")] = None,
    *,
    tenant: Annotated[str | None, Parameter(help="Only functions of this tenant.")] = None,
    withdrawn: Annotated[bool, Parameter(negative="", help="Also those that were withdrawn.")] = False,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """List the functions of all nodes, or show one in full."""
    reports = [report for report in asyncio.run(_reports(where, name, tenant)) if withdrawn or name or report.state != "withdrawn"]
    if json:
        print_json([as_json(report, in_full=name is not None) for report in reports])
    elif name is None:
        _print_table(reports)
    else:
        print("\n\n".join("\n".join(_in_full(report)) for report in reports))
    return 0


async def _reports(where: Where, name: str | None, tenant: str | None) -> list[FunctionReport]:
    """Raises NoSuchFunction where a name was given and nobody has it."""
    from faas.client import no_such_function

    found = await _found(where, name)
    reports = [report for report in found if tenant in (None, report.tenant)]
    if name is not None and not reports:
        raise no_such_function(name, tenant, [report.tenant for report in found])
    return reports


async def _found(where: Where, name: str | None) -> list[FunctionReport]:
    """What the registry has, as the nodes say it stands there; where no node answers, as the registry alone knows it."""
    from faas.cli.deploy import registry
    from faas.client import connect
    from faas.errors import BusUnavailable

    async with registry(where) as (_, registered):
        registrations = [known for known in await registered.registrations() if name in (None, known.name)]
    found = {
        known.key: FunctionReport(
            name=known.name,
            tenant=known.tenant,
            version=known.version,
            runtime=known.current.runtime,
            state="withdrawn" if known.withdrawn else "ready",
            error=f"withdrawn by {known.withdrawn_by}; `faas rollback {known.name}` brings it back" if known.withdrawn else "",
            triggers=known.current.triggers,
        )
        for known in registrations
    }
    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        try:
            reports = await client.functions(name or "")
        except BusUnavailable:
            if not found:
                raise
            reports = []
    found |= {(report.tenant, report.name): report for report in reports}
    return [found[key] for key in sorted(found)]


def _trigger(tenant: str, trigger: Trigger) -> str:
    if trigger.schedule:
        return f"{trigger.schedule} ({trigger.timezone or 'UTC'})"
    if trigger.webhook:
        return f"POST /hooks/{tenant}/{trigger.webhook} ({'not verified' if trigger.verify == 'none' else trigger.verify})"
    return trigger.subject if trigger.delivery == "at-least-once" else f"{trigger.subject} (at most once)"


def _print_table(reports: list[FunctionReport]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("function", "tenant", "runtime", "version", "state", "triggers"):
        table.add_column(heading, no_wrap=heading != "triggers")
    for report in reports:
        triggers = ", ".join(_trigger(report.tenant, trigger) for trigger in report.triggers)
        table.add_row(report.name, report.tenant, report.runtime, report.version, report.state, triggers)
    out = console()
    out.print(table)
    for report in reports:
        if report.error:
            out.print(f"{report.name}: {report.error}")
    if missing := _not_enforced(limit for report in reports for limit in report.not_enforced):
        out.print(f"not enforced on this machine (control groups are not writable): {missing}")


def _not_enforced(limits: Iterator[str]) -> str:
    return ", ".join(f"limits.{limit}" for limit in sorted(set(limits)))


# ---------------------------------------------------------------- one function in full


def _in_full(report: FunctionReport) -> Iterator[str]:
    yield f"{report.name} of tenant {report.tenant}: {report.state}"
    if report.error:
        yield f"  {report.error}"
    if report.state != "ready":
        return
    yield _line("version", report.version)
    yield _line("environment", report.environment or "not built yet: the first event waits for it")
    yield from _keys("", {key: value for key, value in report.declaration.items() if key != "secrets"})
    yield from (_line(f"secret {name}", how) for name, how in report.secrets.items())
    if missing := _not_enforced(iter(report.not_enforced)):
        yield _line("not enforced here", f"{missing} (control groups are not writable)")
    for what, schema in (("input", report.input_schema), ("output", report.output_schema)):
        yield ""
        if not report.loaded:
            yield f"{what}: not loaded yet: run it once"
        elif not schema:
            yield f"{what}: no JSON Schema: its annotation says nothing, or bytes"
        else:
            yield f"{what}:"
            yield json.dumps(json.loads(schema), indent=2, ensure_ascii=False)


def _keys(prefix: str, table: Mapping[str, object]) -> Iterator[str]:
    """Keys in effect, dotted, as `function.toml` has them; those that are empty say nothing."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _keys(f"{prefix}{key}.", value)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                yield from _keys(f"{prefix}{key}[{index}].", item)
        elif value not in ("", [], None) and f"{prefix}{key}" not in ("name", "tenant"):
            yield _line(f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else _shown(value))


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(key: str, value: str) -> str:
    return f"  {key.ljust(KEY_COLUMNS)}  {value}"
