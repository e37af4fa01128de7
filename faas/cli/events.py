"""`faas publish` and `faas invoke`: events in, outcomes out."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from faas.cli.options import DEFAULT_STATE, Data, Header, Json, Nats, State, headers, payload, print_body, print_json
from faas.errors import ConfigInvalid


def publish(
    subject: str,
    data: Data = None,
    *,
    header: Header = (),
    id: Annotated[str | None, Parameter(help="The event's id: the same one again is the same event.")] = None,
    wait: Annotated[bool, Parameter(negative="", help="Wait for the outcome of every function that it sets off.")] = False,
    nats: Nats = None,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> int:
    """Publish an event."""
    body, content_type = payload(data)
    return asyncio.run(_publish(subject, body, headers(header, content_type), id=id, wait=wait, bus=(nats, state), as_json=json))


async def _publish(
    subject: str, body: bytes, head: dict[str, str], *, id: str | None, wait: bool, bus: tuple[str | None, Path], as_json: bool
) -> int:
    from faas.client import connect
    from faas.subjects import problem_with

    if "*" in subject or ">" in subject or (problem := problem_with(subject)):
        raise ConfigInvalid(
            f"{subject!r} cannot be published to: {problem if '*' not in subject and '>' not in subject else 'it has a wildcard'}"
        )
    async with (
        connect(bus[0], state=bus[1]) as client,
        client.publish_and_listen(subject, body, id=id, headers=head) as (published, outcomes),
    ):
        rows: list[dict[str, Any]] = []
        failed = False
        if wait:
            async for ticket, reply in outcomes:
                failed = failed or reply.outcome != "succeeded"
                rows.append(_row(ticket.function, reply.headers, reply.body))
                if not as_json:
                    print(f"{ticket.function}: {reply.outcome}{f' {reply.reason}' if reply.reason else ''}: ", end="", flush=True)
                    print_body(reply.body)
        if as_json:
            print_json(
                {"id": published.id, "stream": published.stream, "functions": [t.function for t in published.waiting], "outcomes": rows}
            )
        elif not wait:
            print(f"{published.id} {'stored in ' + published.stream if published.stream else 'sent at most once'}")
        for name in published.at_most_once if wait and not as_json else ():
            print(f"{name}: takes it at most once, which leaves no outcome")
        return 1 if failed else 0


def _row(function: str, head: Any, body: bytes) -> dict[str, Any]:
    return {
        "function": function,
        "outcome": head.get("Faas-Outcome", ""),
        "reason": head.get("Faas-Reason", ""),
        "headers": dict(head),
        "result": _readable(body),
    }


def _readable(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def invoke(
    function: str,
    data: Data = None,
    *,
    timeout: Annotated[str | None, Parameter(help='Bounds the execution, like "10s"; may only shorten the function\'s own.')] = None,
    header: Header = (),
    async_: Annotated[bool, Parameter(name="--async", negative="", help="Store it, print the invocation id, do not wait.")] = False,
    stream: Annotated[bool, Parameter(negative="", help="Not supported yet.")] = False,
    tenant: str = "default",
    nats: Nats = None,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> int:
    """Run one function and print its result."""
    if stream:
        raise ConfigInvalid("--stream is not supported yet; leave it out to wait for the whole result")
    body, content_type = payload(data)
    head = headers(header, content_type)
    bus = (nats, state)
    if async_:
        if timeout is not None:
            head["Faas-Timeout"] = timeout
        return asyncio.run(_submit(function, body, head, tenant, bus, as_json=json))
    return asyncio.run(_invoke(function, body, head, tenant, timeout, bus, as_json=json))


async def _submit(function: str, body: bytes, head: dict[str, str], tenant: str, bus: tuple[str | None, Path], *, as_json: bool) -> int:
    from faas.client import connect

    async with connect(bus[0], state=bus[1]) as client:
        ticket = await client.submit(function, body, tenant=tenant, headers=head)
    if as_json:
        print_json({"function": function, "tenant": tenant, "invocation": ticket.invocation})
    else:
        print(ticket.invocation)
    return 0


async def _invoke(
    function: str, body: bytes, head: dict[str, str], tenant: str, timeout: str | None, bus: tuple[str | None, Path], *, as_json: bool
) -> int:
    from faas.client import connect

    async with connect(bus[0], state=bus[1]) as client:
        reply = await client.request(function, body, tenant=tenant, timeout=timeout, headers=head)
    if as_json:
        print_json(_row(function, reply.headers, reply.body))
    elif reply.outcome == "succeeded":
        print_body(reply.body)
    if reply.outcome == "succeeded":
        return 0
    failure = reply.failure
    print(f"faas: {function}: {failure}", file=sys.stderr)
    if failure.traceback:
        print(failure.traceback.rstrip(), file=sys.stderr)
    return 1
