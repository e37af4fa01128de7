"""What a node remembers of cancelled invocations: bounded by what still matters, at a cost that does not grow with it."""

from __future__ import annotations

import time

from faas.unended import CANCELLED_LIMIT, Unended


def test_all_that_still_matter_are_remembered_and_others_are_forgotten() -> None:
    """An invocation that was cancelled may wait for hours; one whose event has expired is of no use to anyone."""
    unended = Unended()
    for number in range(2 * CANCELLED_LIMIT):
        unended.cancel(f"over-{number}", until=time.time() - 1)
    for number in range(3 * CANCELLED_LIMIT):
        unended.cancel(f"waits-{number}", until=time.time() + 3600)

    assert all(unended.is_cancelled(f"waits-{number}") for number in range(3 * CANCELLED_LIMIT))
    assert not unended.is_cancelled("over-0")


def test_a_hundred_thousand_cancels_cost_no_more_each_than_ten_thousand() -> None:
    """Who cancels a whole backlog must not stop the node: all that is remembered is looked through now and then, not each time."""
    looked = 0

    class Moment(float):
        def __gt__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return True

    unended = Unended()
    for number in range(10 * CANCELLED_LIMIT):
        unended.cancel(f"waits-{number}", until=Moment(0))

    assert looked < 20 * CANCELLED_LIMIT
