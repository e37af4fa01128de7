"""What waits for one reader of events: in order, bounded, and cut off where it grows too large."""

from __future__ import annotations

import pytest

from faas.bus.connection import Message
from faas.gateway.tapes import BEHIND_BYTES, Heard, Room, SlowReader


def _message(data: bytes) -> Message:
    return Message("s", "", data, None)


async def test_what_is_heard_is_read_in_its_order() -> None:
    """Items are words of a sentence."""
    heard = Heard(lambda: None, Room())
    heard.put(_message(b"a"))
    heard.wake()
    heard.put(_message(b"b"))

    found = [await heard.next(), await heard.next(), await heard.next()]

    assert [message.data if message is not None else None for message in found] == [b"a", None, b"b"]
    assert await heard.next(wait_s=0.0) is None


async def test_a_reader_that_is_too_far_behind_is_cut_once_and_kept_nothing_for() -> None:
    """It may be stuck in a write: what it does not take must not fill the node."""
    cuts: list[int] = []
    room = Room()
    heard = Heard(lambda: cuts.append(1), room)
    for _ in range(3 * BEHIND_BYTES // 100_000):
        heard.put(_message(b"x" * 100_000))

    assert cuts == [1]
    assert BEHIND_BYTES < room.used_bytes < BEHIND_BYTES + 200_000
    with pytest.raises(SlowReader):
        await heard.next()
    heard.close()
    assert room.used_bytes == 0


async def test_many_readers_together_are_bounded_too() -> None:
    """Each a little behind, they would fill the node."""
    room, cuts = Room(limit_bytes=1_000_000), 0

    def cut() -> None:
        nonlocal cuts
        cuts += 1

    readers = [Heard(cut, room) for _ in range(20)]
    for reader in readers:
        reader.put(_message(b"x" * 100_000))

    assert cuts == 11
    for reader in readers:
        reader.close()
    assert room.used_bytes == 0
