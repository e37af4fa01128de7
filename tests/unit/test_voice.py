"""How far what an attempt says may run ahead of the bus."""

from __future__ import annotations

import asyncio

import pytest

from faas.bus.speech import WAITING_BYTES, Item, Voice


class Pace:
    """What a voice asked of its worker."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def voice(self) -> Voice:
        return Voice("inbox", 1, pause=lambda: self.asked.append("pause"), resume=lambda: self.asked.append("resume"))


@pytest.mark.parametrize("body", [b"", b"x" * 1000, b"x" * WAITING_BYTES], ids=["empty", "short", "long"])
async def test_a_worker_that_says_more_than_the_bus_takes_is_held_back_until_half_is_sent(body: bytes) -> None:
    """Empty items count too: a million of them are as much memory as one long one."""
    pace = Pace()
    voice = pace.voice()
    said = 0
    while not pace.asked:
        voice.say(Item(body, "text/plain"))
        said += 1
    assert said <= WAITING_BYTES // 512 + 1

    for _ in range(said):
        assert await voice.next() is not None
    assert pace.asked == ["pause", "resume"]
    assert voice.items == said


async def test_what_was_said_before_the_end_is_sent_before_it() -> None:
    """An outcome that overtakes an event would be seen by someone who then looks for the event."""
    voice = Pace().voice()
    voice.say(Item(b"last", "text/plain"))
    finishing = asyncio.ensure_future(voice.finish())

    assert await voice.next() == Item(b"last", "text/plain")
    assert not finishing.done()
    assert await voice.next() is None
    await finishing
