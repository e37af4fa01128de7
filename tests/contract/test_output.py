"""What a handler and its programs print: cut, bounded for each attempt, and told whose it is."""

from __future__ import annotations

import asyncio

import pytest
from conftest import Make, Printed, death_of, invoke_message, result_of

from faas.pool.output import Speaker


async def test_a_flood_of_output_is_cut_and_blocks_neither_handler_nor_node(make: Make, printed: Printed) -> None:
    """What is not read would fill the socket and stop the handler; what is all logged would stop the node."""
    worker = await make("import sys\ndef handle(event):\n    for n in range(event):\n        print('x' * 99)\n    return 'done'\n")
    other = await make("def handle(event):\n    return event\n", version="v2")

    async with asyncio.TaskGroup() as group:
        flooding = group.create_task(result_of(worker, invoke_message(b"100000")))
        answered = 0
        while not flooding.done():
            answered += await result_of(other, invoke_message(b"1")) == 1

    assert flooding.result() == "done"
    assert answered > 10
    lines = printed.of(worker)
    assert sum(map(len, lines)) < 70_000
    assert "rest is dropped" in lines[-1]


async def test_a_burst_of_short_lines_arrives_whole_and_so_does_what_follows(make: Make, printed: Printed) -> None:
    """More lines at once than one turn of the event loop hands on must not end the reading."""
    worker = await make("import os\ndef handle(event):\n    os.write(1, b'x\\n' * 5000)\n    return 1\n")
    for _ in range(3):
        await worker.invoke(invoke_message())
    worker.retire()
    await death_of(worker)
    await printed.until(worker, 15_000)


async def test_lines_belong_to_the_attempt_that_printed_them(make: Make, printed: Printed) -> None:
    """A program that a handler starts may print more than one turn of the event loop hands on; the next attempt must not answer for it."""
    worker = await make("import os\ndef handle(event):\n    os.write(1, b'x\\n' * event)\n    return 1\n")
    for invocation, count in (("first", b"1000"), ("second", b"1")):
        worker.speak_for(Speaker("t", "f", invocation, 1))
        await worker.invoke(invoke_message(count))
    await printed.until(worker, 1001)

    assert [line.speaker.invocation_id for whose, line in printed.whole if whose is worker] == ["first"] * 1000 + ["second"]


async def test_the_next_attempt_may_print_again(make: Make, printed: Printed) -> None:
    """One noisy attempt must not silence the function for good."""
    worker = await make("def handle(event):\n    print('x' * event)\n    return 1\n")
    await worker.invoke(invoke_message(b"200000"))
    worker.give_back()
    worker.lease()
    await worker.invoke(invoke_message(b"3"))
    worker.retire()
    await death_of(worker)

    assert printed.of(worker)[-1] == "xxx"


async def test_a_line_without_end_is_cut(make: Make, printed: Printed) -> None:
    """Ten megabytes without a newline must not be held until one comes."""
    worker = await make("import sys\ndef handle(event):\n    sys.stdout.write('x' * 20_000)\n    return 1\n")
    await worker.invoke(invoke_message())
    worker.retire()
    await death_of(worker)

    assert [len(line) for line in printed.of(worker)] == [8192, 8192, 20_000 - 2 * 8192]


async def test_output_that_is_no_text_arrives_somehow(make: Make, printed: Printed) -> None:
    """Native libraries print what they like."""
    worker = await make("import os\ndef handle(event):\n    os.write(1, b'\\xff\\xfe\\0\\n')\n    return 1\n")
    await worker.invoke(invoke_message())
    worker.retire()
    await death_of(worker)

    assert len(printed.of(worker)) == 1


@pytest.mark.parametrize("how", ["sys.stdout.close()", "sys.stdout = None", "os.close(1); os.close(2)"])
async def test_a_handler_that_takes_its_own_output_away_still_answers(make: Make, how: str) -> None:
    """Flushing what is gone must not look like a crash."""
    worker = await make(f"import os, sys\ndef handle(event):\n    {how}\n    return 7\n")

    assert await result_of(worker, invoke_message()) == 7
