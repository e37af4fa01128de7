"""What strangers write where the runtime listens and that nobody meant: it costs no caller anything."""

from __future__ import annotations

from pathlib import Path

from node import ECHO, running, write_function

import faas

WAITING_LIMIT = 1000
"""Of `faas.intake`: so many calls of a function wait on a node before one is turned away."""


async def test_calls_that_ask_for_no_answer_turn_no_caller_away(tmp_path: Path) -> None:
    """A publish to a function's subject is one mistake of one word; a thousand of them must not close the function for good."""
    write_function(tmp_path / "functions", "echo", ECHO)
    async with running(tmp_path / "functions", tmp_path / "state", "--environments", "current") as node:
        for _ in range(WAITING_LIMIT + 50):
            await node.client.publish("faas.invoke.default.echo", b"1")
        async with faas.connect(node.info["nats"]) as client:
            assert await client.invoke("echo", 2, timeout="8s") == 2


async def test_a_call_whose_answer_cannot_be_sent_is_not_run(tmp_path: Path) -> None:
    """Whoever names an inbox that no server takes would compute for nothing, or for an account that nobody looks at."""
    write_function(tmp_path / "functions", "echo", ECHO, '[output]\npublish = "unasked.echoed"\n')
    async with running(tmp_path / "functions", tmp_path / "state", "--environments", "current") as node:
        published = await node.client.subscribe("unasked.echoed", max_msgs=1)
        await node.client.jetstream().account_info()  # a fence: the subscription is there
        await node.client.publish("faas.invoke.default.echo", b"3", reply="odd\x01inbox")
        answer = await node.request("echo", b"4")
        message = await published.next_msg(timeout=8)

    assert (answer.data, message.data) == (b"4", b"4")
