"""`faas nodes`: which nodes serve on a bus, since when, and when each was last heard of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from faas.cli.options import Json, Where, console, print_json

if TYPE_CHECKING:
    from faas.registry.nodes import NodeSeen


def nodes(*, where: Where = Where(), json: Json = False) -> int:  # noqa: B008  # frozen
    """List the nodes of the bus."""
    import msgspec

    found = asyncio.run(_nodes(where))
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        _print_table(found)
    return 0


async def _nodes(where: Where) -> list[NodeSeen]:
    from faas.cli.deploy import registry
    from faas.registry.nodes import Nodes

    async with registry(where) as (bus, _):
        return await Nodes(bus).list()


def _print_table(found: list[NodeSeen]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("node", "host", "version", "since", "slots", "functions", "last seen"):
        table.add_column(heading, no_wrap=heading != "functions")
    for node in found:
        table.add_row(
            node.name, node.host, node.version, _second(node.since), str(node.slots), str(len(node.functions)), _second(node.last_seen)
        )
    console().print(table)
    if not found:
        console().print("no node serves on this bus; start one with `faas up`")


def _second(moment: str) -> str:
    """A moment without what is finer than a second."""
    return moment.partition(".")[0].removesuffix("Z") + "Z"
