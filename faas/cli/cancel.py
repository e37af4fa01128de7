"""`faas cancel`: end an invocation, wherever it is. Knows how the answer is said, and nothing of how it is won."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from faas.cli.options import Id, Json, Where, print_json


def cancel(
    invocation: Id,
    *,
    function: Annotated[str, Parameter(help="Whose invocation it is; else all functions are asked.")] = "",
    tenant: Annotated[str, Parameter(help="Whose function it is.")] = "default",
    where: Where = Where(),  # noqa: B008  # frozen
    json: Json = False,
) -> int:
    """Cancel an invocation."""
    from faas.client import connect

    async def ask() -> object:
        async with connect(where.nats, state=where.state, nkey=where.nkey) as client:
            return await client.cancel(invocation, function=function, tenant=tenant)

    answer = msgspec.to_builtins(asyncio.run(ask()))
    if json:
        print_json(answer)
    elif answer["cancelled"]:
        print(f"{invocation}: cancelled")
    elif answer["known"]:
        ended = f"it has ended as {answer['outcome']}" if answer["outcome"] else "it has ended"
        print(f"faas: {invocation}: too late, {ended}", file=sys.stderr)
    else:
        print(f"faas: {invocation}: no invocation of that id waits or runs", file=sys.stderr)
    return 0 if answer["cancelled"] else 1
