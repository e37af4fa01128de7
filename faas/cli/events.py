"""`faas publish` and `faas invoke`: events in, outcomes out. A thin layer on the client; knows how results are printed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import Data, Json, Name, Payload, Where, harmless, headers, payload, print_body, print_item, print_json, say_error
from faas.errors import ConfigInvalid, InvocationFailed
from faas.units import Duration

if TYPE_CHECKING:
    from faas.envelope import Reply


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One outcome as `--json` prints it; `result` is a JSON value where the body is one, else text."""

    function: str
    outcome: str
    reason: str
    headers: Mapping[str, str]
    result: object


def publish(
    subject: Annotated[str, Parameter(help="Where it goes, like images.cats.uploaded.")],
    data: Data = None,
    *,
    event: Payload = Payload(),  # noqa: B008  # frozen
    wait: Annotated[bool, Parameter(negative="", help="Wait for the outcome of every function that it sets off.")] = False,
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Publish an event."""
    body, content_type = payload(data)
    return asyncio.run(_publish(subject, body, headers(event.header, content_type), id=event.id, wait=wait, where=where, as_json=json))


async def _publish(subject: str, body: bytes, head: dict[str, str], *, id: str | None, wait: bool, where: Where, as_json: bool) -> int:
    from faas.client import connect
    from faas.runs import ending
    from faas.subjects import problem_with

    wild = "*" in subject or ">" in subject
    if wild or (problem := problem_with(subject)):
        raise ConfigInvalid(f"{subject[:80]!r} cannot be published to: {'it has a wildcard' if wild else problem}")
    rows: list[Row] = []
    async with (
        connect(where.nats, state=where.state, nkey=where.nkey) as client,
        client.publish_and_listen(subject, body, id=id, headers=head) as (sent, outcomes),
    ):
        if wait:
            async for ticket, reply in outcomes:
                rows.append(_row(ticket.function, reply))
                if not as_json:
                    print(f"{ticket.function}: {ending(reply.outcome, reply.reason, between=' ')}: ", end="", flush=True)
                    print_body(reply.body)
    if as_json:
        names = [ticket.function for ticket in sent.waiting]
        print_json({"id": sent.id, "stream": sent.stream, "functions": names, "outcomes": msgspec.to_builtins(rows)})
    elif not wait:
        print(
            f"{sent.id if sent.id.isprintable() else ascii(sent.id)} {'stored in ' + sent.stream if sent.stream else 'sent at most once'}"
        )
    for name in sent.at_most_once if wait and not as_json else ():
        print(f"{name}: takes it at most once, which leaves no outcome")
    return 0 if all(row.outcome == "succeeded" for row in rows) else 1


def _row(function: str, reply: Reply) -> Row:
    try:
        result: object = json.loads(reply.body)
    except ValueError:
        result = reply.body.decode("utf-8", "replace")
    return Row(function=function, outcome=reply.outcome, reason=reply.reason, headers=dict(reply.headers), result=result)


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Call:
    """How a function is invoked."""

    timeout: Annotated[str | None, Parameter(help='Bounds the whole call, like "10s".')] = None
    async_: Annotated[bool, Parameter(name="--async", negative="", help="Store it, print the invocation id, do not wait.")] = False
    stream: Annotated[bool, Parameter(negative="", help="Print the items of a generator as they come.")] = False
    idempotency_key: Annotated[str | None, Parameter(help="Run once for this key; repeated within a day it gives the first outcome.")] = (
        None
    )
    tenant: Annotated[str, Parameter(help="Whose function it is.")] = "default"


def invoke(
    function: Name,
    data: Data = None,
    *,
    call: Call = Call(),  # frozen
    event: Payload = Payload(),  # noqa: B008  # frozen
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Run one function and print its result."""
    body, content_type = payload(data)
    head = headers(event.header, content_type)
    if call.async_ and call.stream:
        raise ConfigInvalid("--async does not wait, so there is nothing to --stream; give one of the two")
    if call.idempotency_key is not None and (call.stream or event.id is not None):
        raise ConfigInvalid(
            "--idempotency-key goes with neither --stream nor --id: its items are sent once, and a stored event's id is its key"
        )
    if call.async_:
        return asyncio.run(_submit(function, body, head, call=call, id=event.id or call.idempotency_key, where=where, as_json=json))
    if event.id is not None:
        raise ConfigInvalid(
            "--id needs --async: a synchronous invocation is not stored; --idempotency-key stores one, so that it can be repeated"
        )
    if call.stream:
        return asyncio.run(_stream(function, body, head, call=call, where=where, as_json=json))
    return asyncio.run(_invoke(function, body, head, call=call, where=where, as_json=json))


async def _submit(function: str, body: bytes, head: dict[str, str], *, call: Call, id: str | None, where: Where, as_json: bool) -> int:
    from faas.client import connect

    if call.timeout is not None:
        try:
            Duration.parse(call.timeout)
        except ValueError as error:
            raise ConfigInvalid(f"--timeout: {error}") from error
        head["Faas-Timeout"] = call.timeout
    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        ticket = await client.submit(function, body, id=id, tenant=call.tenant, headers=head)
    if as_json:
        print_json({"function": function, "tenant": call.tenant, "invocation": ticket.invocation})
    else:
        print(ticket.invocation)
    return 0


async def _invoke(function: str, body: bytes, head: dict[str, str], *, call: Call, where: Where, as_json: bool) -> int:
    from faas.client import connect

    async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
        reply = await client.request(
            function, body, tenant=call.tenant, timeout=call.timeout, headers=head, idempotency_key=call.idempotency_key
        )
    if as_json:
        print_json(msgspec.to_builtins(_row(function, reply)))
    elif reply.outcome == "succeeded":
        print_body(reply.body)
    if reply.outcome == "succeeded":
        return 0
    _print_failure(function, reply.failure, as_json=as_json)
    return 1


async def _stream(function: str, body: bytes, head: dict[str, str], *, call: Call, where: Where, as_json: bool) -> int:
    from faas.client import connect

    text = False  # so far all was text, whose last line has no end yet
    try:
        async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
            async for item in client.stream(function, body, tenant=call.tenant, timeout=call.timeout, headers=head):
                text = isinstance(item, str) and not as_json
                print_item(item, as_json=as_json)
    except InvocationFailed as failure:
        print("\n" if text else "", end="", flush=True)
        _print_failure(function, failure, as_json=as_json)
        return 1
    print("\n" if text else "", end="", flush=True)
    return 0


def _print_failure(function: str, failure: InvocationFailed, *, as_json: bool) -> None:
    say_error(failure.code, f"{function}: {failure}", json=as_json)
    if failure.traceback and not as_json:
        print(harmless(failure.traceback.rstrip()), file=sys.stderr)
