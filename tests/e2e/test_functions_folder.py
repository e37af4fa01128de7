"""A functions folder as people leave it: good ones in both forms beside broken ones, and a node that says which is which."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

import pytest
from node import Node, command, end, head, running, write_function

MARK = "imported"
SINGLE = """# /// faas
# tags = { project = "x" }
# [[trigger]]
# subject = "folder.single"
# ///
import os

def handle(event, ctx):
    return {"got": event, "tags": dict(ctx.tags)}
"""


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """One node for all of it; it must start."""
    root = tmp_path_factory.mktemp("folder")
    functions = root / "functions"
    write_function(functions, "good", f"open({str(root / MARK)!r}, 'a').close()\ndef handle(event):\n    return 1\n")
    (functions / "single.py").write_text(SINGLE)
    (functions / "with-hyphen.py").write_text(
        "# /// faas\r\n# ///\r\nclass handle:\r\n    def handle(self, event):\r\n        return event\r\n"
    )
    (functions / "forgot.py").write_text("def handle(event):\n    return 1\n")
    (functions / "open.py").write_text("# /// faas\n# tags = {}\n\ndef handle(event):\n    return 1\n")
    write_function(functions, "typo", "def handle(event):\n    return 1\n", '[limits]\n\ntimeoutt = "3s"\n')
    write_function(functions, "syntax", "def handle(event:\n")
    write_function(functions, "later", "def handle(event):\n    return 1\n", "[budget]\ncost = 1\n")
    write_function(functions, "large", "def handle(event):\n    return 1\n", "#" * 10 * 2**20)
    os.mkfifo(functions / "pipe.py")
    (functions / "loop").symlink_to("loop")
    async with running(functions, root / "state") as node:
        yield node


async def test_the_good_ones_serve_beside_the_bad_ones(node: Node) -> None:
    """One mistake must not stop a node, and its author must find it without reading a log."""
    code, out, _ = await command("functions", "--json", "--nats", node.info["nats"])
    listed = {report["name"]: report for report in json.loads(out)}
    errors = {name: report["error"] for name, report in listed.items() if report["state"] == "invalid"}

    assert code == 0
    assert sorted(node.info["functions"]) == ["good", "single", "with-hyphen"]
    assert sorted(set(listed) - set(errors)) == ["good", "single", "with-hyphen"]
    assert errors["typo"] == "typo/function.toml: line 3: limits.timeoutt: unknown key; did you mean timeout?"
    assert errors["syntax"].startswith("syntax/handler.py: line 1: ")
    assert errors["later"] == "later/function.toml: line 1: budget: not supported yet; remove it"
    assert errors["open"] == "open.py: line 1: the `# /// faas` block is not closed; end it with a line `# ///`"
    assert sorted(errors) == ["large", "later", "loop", "open", "pipe", "syntax", "typo"]


async def test_a_file_that_may_be_meant_as_a_function_is_in_the_nodes_log(node: Node) -> None:
    """It is on no list of functions, so this is where its author can learn why."""
    said = (node.state / "node.log").read_text()

    assert any("forgot.py" in line and "# /// faas" in line for line in said.splitlines())


async def test_a_single_file_runs(node: Node) -> None:
    """Invoked by name and set off by its trigger, with what its block says."""
    code, out, _ = await command("invoke", "single", '{"a": 1}', "--nats", node.info["nats"])
    published, ends, _ = await command("publish", "folder.single", '{"a": 2}', "--wait", "--nats", node.info["nats"])

    assert (code, json.loads(out)) == (0, {"got": {"a": 1}, "tags": {"project": "x"}})
    assert published == 0
    assert '{"a":2}' in ends


async def test_a_single_file_may_have_a_name_that_no_import_statement_takes(node: Node) -> None:
    """Functions are named with hyphens."""
    reply = await node.request("with-hyphen", b"7")

    assert end(reply) == ("succeeded", "")
    assert reply.data == b"7"


async def test_nothing_of_a_function_is_imported_before_its_first_event(node: Node) -> None:
    """User code runs in sandboxes, when it is asked for."""
    mark = node.state.parent / MARK
    before = mark.exists()
    await node.request("good", b"1")

    assert not before
    assert mark.exists()


async def test_what_is_invalid_is_unknown_to_callers(node: Node) -> None:
    """In one sentence that names it."""
    code, _, err = await command("invoke", "typo", "1", "--nats", node.info["nats"])

    assert code == 1
    assert "typo" in err
    assert "Traceback" not in err


async def test_a_function_that_breaks_while_the_node_runs_is_served_as_it_was(node: Node) -> None:
    """Saving half a line must not take a function away: the last good one serves on, in workers that are made later too."""
    folder = node.state.parent / "functions"
    single = folder / "single.py"
    whole = single.read_text()
    before = await node.request("single", b'{"a": 1}')
    try:
        single.write_text("# /// faas\n# nmae = 'x\n# ///\ndef handle(event:\n")
        after = await node.request("single", b'{"a": 1}')
    finally:
        single.write_text(whole)

    assert (end(before), before.data) == (end(after), after.data)
    assert head(before)["Faas-Version"] == head(after)["Faas-Version"]
