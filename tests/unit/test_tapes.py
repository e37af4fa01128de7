"""What waits for one reader of events: in order, bounded, and cut off where it grows too large."""

from __future__ import annotations

import pytest

from faas.bus.connection import Message
from faas.gateway.tapes import BEHIND_BYTES, Heard, SlowReader


def _message(data: bytes) -> Message:
    return Message("s", "", data, None)


async def test_what_is_heard_is_read_in_its_order() -> None:
    """Items are words of a sentence."""
    heard = Heard(lambda: None)
    heard.put(_message(b"a"))
    heard.wake()
    heard.put(_message(b"b"))

    found = [await heard.next(), await heard.next(), await heard.next()]

    assert [message.data if message is not None else None for message in found] == [b"a", None, b"b"]
    assert await heard.next(wait_s=0.0) is None


async def test_a_reader_that_is_too_far_behind_is_cut_once_and_kept_nothing_for() -> None:
    """It may be stuck in a write: what it does not take must not fill the node."""
    cuts: list[int] = []
    heard = Heard(lambda: cuts.append(1))
    for _ in range(3 * BEHIND_BYTES // 100_000):
        heard.put(_message(b"x" * 100_000))

    assert cuts == [1]
    assert heard._bytes < BEHIND_BYTES + 200_000
    with pytest.raises(SlowReader):
        await heard.next()
