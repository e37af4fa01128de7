"""`faas demo`: a node on a scratch folder runs every example event, and shows what each used."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from cyclopts import Parameter

from faas import subjects
from faas.cli.node import Addresses, Environments, settings_of, stop_at_signals
from faas.cli.options import Folders, Json, console, print_json
from faas.errors import ConfigInvalid, FaasError
from faas.units import format_cost, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from faas.client import Client
    from faas.config import Config
    from faas.envelope import Reply
    from faas.model import FunctionReport, FunctionVersion

FIRST = "hello"
RESULT_CHARACTERS = 60
OUTCOME_S = 1800.0
"""The first event of a profile waits for its environment: minutes on a slow network."""


@dataclass(slots=True)
class Row:
    """What became of one function's example event."""

    function: str
    outcome: str
    reason: str
    detail: str
    phases: dict[str, Any]
    usage: dict[str, Any]
    result: str


def demo(
    *,
    only: Annotated[str | None, Parameter(help="Run this function alone.")] = None,
    folders: Folders = Folders(),  # noqa: B008  # frozen
    nats: Annotated[
        str | None, Parameter(help="URL of a nats-server that is there already, those of a cluster joined by commas; else an embedded one.")
    ] = None,
    environments: Environments = "build",
    json: Json = False,
) -> int:
    """Start a node, publish each example event, show outcome, phases and usage, stop."""
    import uvloop

    from faas.environments.profile import shipped_functions
    from faas.telemetry import set_up_logging

    set_up_logging(quiet=True)
    default = Path("functions")
    functions = folders.functions or (default if default.is_dir() else shipped_functions())
    with tempfile.TemporaryDirectory(prefix="faas-demo-") as scratch:
        addresses = Addresses(nats, None if nats else "127.0.0.1:0", "127.0.0.1:0")
        settings = settings_of(Folders(functions, folders.runtimes), addresses, state=Path(scratch), environments=environments)
        rows = uvloop.run(_demo(settings, only, quiet=json))
    if json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        _print_table(rows)
    return 0 if rows and all(row.outcome == "succeeded" for row in rows) else 1


async def _demo(settings: Config, only: str | None, *, quiet: bool) -> list[Row]:
    from faas.app import running
    from faas.cli.environments import describe

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    stop = asyncio.Event()
    stop_at_signals(stop)
    async with running(settings, eager=False, on_build=lambda progress: say(describe(progress))) as info, asyncio.TaskGroup() as group:
        stopped = group.create_task(stop.wait())
        work = group.create_task(_run_all(info.nats, settings, only, say=say))
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        for task in (work, stopped):
            task.cancel()
    if work.cancelled():
        raise KeyboardInterrupt
    return work.result()


async def _run_all(url: str, settings: Config, only: str | None, *, say: Callable[[str], None]) -> list[Row]:
    """Each function in turn: `hello`, then those of the profile that it has, so that their rows are there before anything large is built."""
    from faas.client import connect
    from faas.environments.profile import load_profiles
    from faas.registry.spec import read_functions

    read = read_functions(settings.functions, load_profiles(settings.runtimes)[0], mounts=settings.mounts)
    sources = {function.key: function for function in read.functions}
    rows = []
    async with connect(url) as client:
        known = [r for r in await client.functions() if r.state == "invalid" or (r.tenant, r.name) in sources]  # others: of other nodes
        reports = [report for report in known if only in (None, report.name)]
        if only is not None and not reports:
            names = ", ".join(sorted({report.name for report in known}))
            raise ConfigInvalid(f"no function {only} in {settings.functions}; there are: {names or 'none'}")
        small = next((report.runtime for report in known if report.name == FIRST), "")
        for report in sorted(reports, key=lambda report: (report.name != FIRST, report.runtime != small, report.name)):
            if report.state == "invalid":
                rows.append(Row(report.name, "invalid", "", report.error, {}, {}, ""))
                say(f"{report.name}: invalid: {report.error}")
                continue
            if not sources[report.tenant, report.name].example:
                if only is not None:
                    raise ConfigInvalid(f"{only} has no example_event.json, which the demo publishes; write one beside its handler")
                say(f"{report.name}: left out, since it has no example_event.json")
                continue
            try:
                rows.append(await _run(client, report, sources[report.tenant, report.name]))
            except TimeoutError:
                rows.append(Row(report.name, "none", "", f"no outcome within {format_duration(OUTCOME_S)}", {}, {}, ""))
            except FaasError as error:
                rows.append(Row(report.name, "none", error.code, str(error), {}, {}, ""))
            say(f"{report.name}: {rows[-1].outcome} {_short(rows[-1])}".rstrip())
    return rows


async def _run(client: Client, report: FunctionReport, source: FunctionVersion) -> Row:
    """Send the example where a trigger takes it, else as a submission, and wait for its outcome."""
    subject, body, headers = _example(source)
    if any(trigger.delivery == "at-least-once" and subjects.contains(trigger.subject, subject) for trigger in report.triggers):
        async with client.publish_and_listen(subject, body, headers=headers) as (_, outcomes), asyncio.timeout(OUTCOME_S):
            async for ticket, reply in outcomes:
                if ticket.function == report.name:
                    return _row(report.name, reply)
    ticket = await client.submit(report.name, body, tenant=report.tenant, headers=headers)
    return _row(report.name, await client.outcome(ticket, wait=OUTCOME_S))


def _example(source: FunctionVersion) -> tuple[str, bytes, dict[str, str]]:
    """(subject, body, headers) of example_event.json: a CloudEvent in JSON format, missing attributes left to the client."""
    try:
        document: dict[str, Any] = json.loads(source.example)
        if "data_base64" in document:
            body = base64.b64decode(document["data_base64"], validate=True)
        else:
            data = document.get("data")
            json_type = str(document.get("datacontenttype", "application/json")).endswith("json")
            body = json.dumps(data).encode() if json_type or not isinstance(data, str) else data.encode()
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigInvalid(f"{source.spec.name}/example_event.json: no CloudEvent in JSON format: {error}") from error
    attributes = {
        name: str(value).lower() if isinstance(value, bool) else str(value)  # CloudEvents writes true, not True
        for name, value in document.items()
        if name not in ("data", "data_base64") and isinstance(value, str | int)
    }
    headers = {
        f"ce-{name}": quote(value, safe=" /:;,.=+-_~@!()") for name, value in attributes.items() if name not in ("id", "datacontenttype")
    }
    return attributes.get("subject", ""), body, {**headers, "Content-Type": attributes.get("datacontenttype", "application/json")}


def _row(function: str, reply: Reply) -> Row:
    head = reply.headers
    usage = json.loads(head.get("Faas-Usage", "[]"))
    phases = {
        "start": head.get("Faas-Start", ""),
        **{name: int(head.get(f"Faas-{name.title()}-Us", 0)) for name in ("queue", "load", "run")},
    }
    detail = "" if reply.outcome == "succeeded" else f"{reply.reason}: {reply.failure.detail}"
    return Row(function, reply.outcome, reply.reason, detail, phases, usage[-1] if usage else {}, _result(reply))


def _result(reply: Reply) -> str:
    """A result as it can be shown: text as it is, of anything else its content type and size."""
    kind = reply.headers.get("Content-Type", "application/octet-stream")
    textual = kind.startswith(("text/", "application/json", "application/problem+json"))
    return reply.body.decode("utf-8", "replace") if textual else f"{kind}, {format_size(len(reply.body))}"


def _print_table(rows: list[Row]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("function", "outcome", "start", "queue", "load", "run", "cpu", "memory", "cost", "result"):
        table.add_column(heading, no_wrap=heading != "result")
    for row in rows:
        times = [format_duration(row.phases[name] / 1e6) if row.phases else "" for name in ("queue", "load", "run")]
        usage = row.usage
        used = (
            [format_duration(usage["cpu_us"] / 1e6), format_size(usage["memory_peak_bytes"]), format_cost(usage["cost_nanousd"])]
            if usage
            else ["", "", ""]
        )
        table.add_row(row.function, row.outcome, row.phases.get("start", ""), *times, *used, _short(row))
    console().print(table)


def _short(row: Row) -> str:
    text = " ".join((row.detail or row.result).split())
    return text if len(text) <= RESULT_CHARACTERS else f"{text[:RESULT_CHARACTERS]}..."
