"""`faas functions NAME`: one function in full, as it is in effect and as its worker reported it."""

from __future__ import annotations

import json

import pytest
from node import Node, command


async def in_full(node: Node, name: str) -> dict[str, object]:
    """What `faas functions NAME --json` says of the only function of that name."""
    code, out, err = await command("functions", name, "--json", "--nats", node.info["nats"])
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    return dict(found)


async def test_a_loaded_function_shows_what_it_takes(node: Node) -> None:
    """A caller writes an event by the schema of the types that validate it."""
    await node.request("double", b'{"n": 1}')

    double = await in_full(node, "double")

    assert double["loaded"] is True
    assert isinstance(double["input_schema"], dict)
    assert double["input_schema"]["$defs"]["In"]["properties"] == {"n": {"type": "integer"}}
    assert double["output_schema"] is None
    assert len(str(double["environment"])) == 64


async def test_defaults_are_shown_as_they_hold(node: Node) -> None:
    """What an author has not written counts as much as what he has."""
    declaration = (await in_full(node, "slow"))["declaration"]

    assert isinstance(declaration, dict)
    assert declaration["limits"]["queue_timeout"] == "700ms"
    assert declaration["limits"]["memory"] == "2GiB"
    assert declaration["retry"]["on"] == ["crash", "gpu"]


async def test_a_function_that_nobody_has_loaded_says_what_to_do(node: Node) -> None:
    """Types are known from the sandbox alone: the node never imports what it serves."""
    code, out, _ = await command("functions", "noenv", "--nats", node.info["nats"])

    assert code == 0
    assert "input: not loaded yet: run it once" in out
    assert "limits.timeout" in out


async def test_the_list_stays_short(node: Node) -> None:
    """Schemas of hundreds of functions would be more than one answer on the bus carries."""
    _, out, _ = await command("functions", "--json", "--nats", node.info["nats"])

    assert all("input_schema" not in function for function in json.loads(out))


@pytest.mark.parametrize("arguments", [["functions", "double", "--tenant", "other"], ["invoke", "double", "1", "--tenant", "other"]])
async def test_a_function_of_another_tenant_is_named(node: Node, arguments: list[str]) -> None:
    """The name is right and the tenant is not: saying only that there is none would send people looking for the wrong mistake."""
    code, _, err = await command(*arguments, "--nats", node.info["nats"])

    assert code == 1
    assert "no function double of tenant other; there is one of default" in err
