"""`faas logs`: what a function printed and logged. Knows how a line is shown, not where it comes from."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import Json, Name, Where

if TYPE_CHECKING:
    from faas.runs import LogLine


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Which:
    """Which lines are shown."""

    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="", help="Go on with what comes, until interrupted.")] = False
    invocation: Annotated[str, Parameter(help="Only of this invocation.")] = ""
    since: Annotated[str | None, Parameter(help='Leave out what is older, like "10m".')] = None
    tenant: Annotated[str, Parameter(help="Whose function it is.")] = "default"


def logs(
    function: Name,
    *,
    which: Which = Which(),  # frozen
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Print the lines of a function, oldest first."""
    return asyncio.run(_logs(function, which=which, where=where, as_json=json))


async def _logs(function: str, *, which: Which, where: Where, as_json: bool) -> int:
    from faas.client import LISTED, connect
    from faas.errors import BusUnavailable, NoSuchFunction

    seen = False
    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        lines = client.logs(function, tenant=which.tenant, invocation=which.invocation, follow=which.follow, since=which.since)
        async for line in lines:
            seen = True
            print(msgspec.json.encode(line).decode() if as_json else in_words(line), flush=which.follow)
        if not seen and not which.invocation:
            try:
                known = await client.functions()
            except BusUnavailable:
                return 0  # no node to ask: there are no lines, and that is all that is known
            if not any((report.name, report.tenant) == (function, which.tenant) for report in known):
                raise NoSuchFunction(f"no function {function} of tenant {which.tenant}; {LISTED}")
            if not as_json:
                print(f"faas: {function} has printed and logged nothing that is kept", file=sys.stderr)
    return 0


def in_words(line: LogLine) -> str:
    """One line for people: time to the millisecond, level, and whose it is. What would move a terminal's cursor stands as an escape."""
    text = line.message if line.fraction is None else f"{line.fraction:4.0%} {line.message}"
    clean = "".join(ch if ch.isprintable() or ch == "\t" else ch.encode("unicode_escape").decode() for ch in text)
    level = "progress" if line.fraction is not None else line.stream if line.stream in ("stdout", "stderr") else line.level
    return f"{line.time[:23]}Z {level:8} {line.invocation[:8]:8} {clean}"
