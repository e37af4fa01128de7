"""Lines of functions on their way to a real bus."""

from __future__ import annotations

import json

from faas.bus.connection import Bus, Message
from faas.bus.logs import LogLine, LogLines


def a_line(number: int, *, invocation: str = "i1") -> LogLine:
    return LogLine(time="", level="info", stream="stdout", message=f"line {number}", invocation=invocation, attempt=1)


async def test_what_waits_when_the_node_stops_is_sent(bus: Bus, tenant: str) -> None:
    """The last lines before an end are those that say why; more than fits into one message, for many invocations."""
    heard: dict[str, list[str]] = {}

    def take(message: Message) -> None:
        lines = [json.loads(line)["message"] for line in message.data.splitlines()]
        heard.setdefault(message.subject, []).extend(lines)

    await bus.subscribe(f"faas.log.{tenant}.>", take)
    async with LogLines.open(bus) as lines:
        for number in range(5000):
            lines.add(tenant, "f", a_line(number, invocation=f"i{number % 3}"))
    await bus.fence()

    assert sorted(heard) == [f"faas.log.{tenant}.f.i{index}" for index in range(3)]
    assert heard[f"faas.log.{tenant}.f.i0"] == [f"line {number}" for number in range(0, 5000, 3)]
    assert sum(map(len, heard.values())) == 5000


async def test_lines_of_a_load_that_no_event_waits_for_have_a_subject_too(bus: Bus, tenant: str) -> None:
    """A worker that is kept warm loads for nobody, and what it prints is what its author looks for."""
    heard: list[str] = []

    def take(message: Message) -> None:
        heard.append(message.subject)

    await bus.subscribe(f"faas.log.{tenant}.>", take)
    async with LogLines.open(bus) as lines:
        lines.add(tenant, "f", a_line(1, invocation=""))
    await bus.fence()

    assert heard == [f"faas.log.{tenant}.f.-"]
