"""`faas dlq`: dead letters, looked at, run again, thrown away. Knows how one is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from faas.cli.options import Id, Json, Where, console, print_json
from faas.errors import ConfigInvalid, FaasError

if TYPE_CHECKING:
    from faas.calling.letters import Letter
    from faas.client import Client

LIMIT = 100
AT_ONCE = 32
"""Letters that are purged or redriven side by side: one after another ten thousand take minutes."""


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Range:
    """Which letters are meant."""

    function: Annotated[str, Parameter(help="Only of this function.")] = ""
    since: Annotated[str | None, Parameter(help='Only of the last, like "1h".')] = None
    until: Annotated[str | None, Parameter(help='Only those older than, like "10m".')] = None
    tenant: Annotated[str, Parameter(help="Whose function it is.")] = "default"

    def of(self, client: Client, invocations: tuple[str, ...] = ()) -> AsyncIterator[Letter]:
        return client.letters(self.function, tenant=self.tenant, invocations=invocations, since=self.since, until=self.until)


Ids = Annotated[tuple[str, ...], Parameter(help="Invocations whose letters are meant.")]
All = Annotated[bool, Parameter(name="--all", negative="", help="All letters of the tenant.")]


def list_letters(
    *,
    which: Range = Range(),  # frozen
    limit: Annotated[int, Parameter(help="At most so many, the newest ones.")] = LIMIT,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """List dead letters, oldest first."""
    from faas.calling.letters import as_json

    if limit < 1:
        raise ConfigInvalid("--limit: at least 1")
    found = asyncio.run(_found(which, where))
    shown = found[-limit:]
    if json:
        print_json([as_json(letter, whole=False) for letter in shown])
        return 0
    _print_table(shown)
    if len(found) > len(shown):
        console().print(f"{len(found) - len(shown)} older ones are not shown; --limit {len(found)} shows all")
    return 0


async def _found(which: Range, where: Where, invocations: tuple[str, ...] = ()) -> list[Letter]:
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        return [letter async for letter in which.of(client, invocations)]


def _print_table(letters: list[Letter]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("at", "function", "invocation", "outcome", "reason", "subject", "bytes"):
        table.add_column(heading, no_wrap=heading != "subject")
    for letter in letters:
        table.add_row(
            letter.at[:19], letter.function, letter.invocation, letter.outcome, letter.reason, letter.subject, str(letter.size_bytes)
        )
    console().print(table if letters else "no dead letters")


def show(
    invocation: Id,
    *,
    tenant: Annotated[str, Parameter(help="Whose function it is.")] = "default",
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Show one dead letter whole."""
    from faas.calling.letters import LetterGone, as_json

    found = asyncio.run(_found(Range(tenant=tenant), where, (invocation,)))
    if not found:
        raise LetterGone(f"no dead letter of {invocation}; `faas dlq list` shows what there is")
    document = as_json(found[-1], whole=True)
    if json:
        print_json(document)
        return 0
    out = console()
    headers = document.pop("headers", {})
    for name, value in document.items():
        out.print(f"{name}: {value}")
    for name, value in sorted(headers.items() if isinstance(headers, dict) else ()):
        out.print(f"  {name}: {value}")
    out.print(f"what went wrong in each attempt: faas why {invocation}")  # the letter has the event and a word for the reason
    return 0


def redrive(
    *invocations: Annotated[str, Parameter(help="Invocations whose letters are meant.")],
    which: Range = Range(),  # frozen
    every: All = False,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Run the events of dead letters again."""
    _check_meant(invocations, which, every=every)
    return asyncio.run(_redrive(invocations, which, where=where, as_json=json))


async def _redrive(invocations: tuple[str, ...], which: Range, *, where: Where, as_json: bool) -> int:
    from faas.calling.flows import in_order
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        meant = [letter async for letter in which.of(client, invocations)]  # before any is redriven: one that fails again is a new letter

        async def redriven(letter: Letter) -> dict[str, str]:
            try:
                ticket = await client.redrive(letter)
            except FaasError as error:  # of the bus too: what runs again by then has to be told
                return {"function": letter.function, "letter": letter.invocation, "error": str(error)}
            return {"function": letter.function, "letter": letter.invocation, "invocation": ticket.invocation}

        rows = [row async for row in in_order(redriven, meant, in_flight=AT_ONCE)]
    missing = sorted(set(invocations) - {row["letter"] for row in rows})
    rows += [{"function": "", "letter": letter, "error": f"no dead letter of {letter}"} for letter in missing]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print(f"{row['letter']}: " + (f"runs again as {row['invocation']}" if "invocation" in row else row["error"]))
        print(f"{sum('invocation' in row for row in rows)} of {len(rows)} run again")
    return 1 if any("error" in row for row in rows) else 0


def purge(
    *invocations: Annotated[str, Parameter(help="Invocations whose letters are meant.")],
    which: Range = Range(),  # frozen
    every: All = False,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Throw dead letters away."""
    _check_meant(invocations, which, every=every)
    return asyncio.run(_purge(invocations, which, where=where, as_json=json))


async def _purge(invocations: tuple[str, ...], which: Range, *, where: Where, as_json: bool) -> int:
    from faas.calling.flows import in_order
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:

        async def buried(letter: Letter) -> str:
            await client.bury(letter)
            return letter.invocation

        gone: list[str] = [id async for id in in_order(buried, which.of(client, invocations), in_flight=AT_ONCE)]
    if as_json:
        print_json({"purged": gone})
    else:
        print(f"{len(gone)} thrown away")
    missing = sorted(set(invocations) - set(gone))
    if missing:
        raise FaasError(f"no dead letter of {', '.join(missing)}; `faas dlq list` shows what there is")
    return 0


def _check_meant(invocations: tuple[str, ...], which: Range, *, every: bool) -> None:
    if not (invocations or which.function or which.since or which.until or every):
        raise ConfigInvalid("say which letters: invocations, --function, --since, --until, or --all")
