"""The order in which flows get slots."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from faas.scheduling.fair_queue import FairQueue, Flow

A, B, C = ("t", "a"), ("t", "b"), ("t", "c")


def always(flow: Flow) -> bool:
    return True


def test_flows_take_turns_however_long_one_of_them_is() -> None:
    """A flood of one function must not make another's event wait behind it."""
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3"):
        queue.put(A, item)
    queue.put(B, "b1")

    assert [queue.take(always) for _ in range(4)] == [(A, "a1"), (B, "b1"), (A, "a2"), (A, "a3")]


def test_a_flow_that_may_not_start_keeps_its_turn_and_blocks_nobody() -> None:
    """One at its cap waits; the others go on."""
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")
    queue.put(B, "b1")

    assert queue.take(lambda flow: flow == B) == (B, "b1")
    assert queue.take(lambda flow: flow == B) is None
    assert queue.take(always) == (A, "a1")


def test_a_removed_item_is_never_taken() -> None:
    """It expired, or its delivery was lost, while it waited."""
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")

    assert queue.remove(A, "a1")
    assert not queue.remove(A, "a1")
    assert not queue
    assert queue.take(always) is None


def test_clear_returns_everything_that_waited() -> None:
    """A node that stops gives each of them back to the bus."""
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")
    queue.put(B, "b1")

    assert sorted(queue.clear()) == ["a1", "b1"]
    assert not queue


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers()), max_size=60))
def test_everything_put_in_comes_out_once_and_in_order_within_its_flow(puts: list[tuple[Flow, int]]) -> None:
    """Nothing is lost and nothing starts twice."""
    queue: FairQueue[tuple[Flow, int, int]] = FairQueue()
    for position, (flow, value) in enumerate(puts):
        queue.put(flow, (flow, value, position))
    taken = []
    while (item := queue.take(always)) is not None:
        taken.append(item[1])

    assert sorted(taken, key=lambda item: item[2]) == [(flow, value, position) for position, (flow, value) in enumerate(puts)]
    for flow in (A, B, C):
        positions = [item[2] for item in taken if item[0] == flow]
        assert positions == sorted(positions)


@given(st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 20), min_size=1))
def test_between_two_turns_of_a_flow_no_other_has_more_than_one(lengths: dict[Flow, int]) -> None:
    """The bound that fairness means here: at most one start of each other flow per turn."""
    queue: FairQueue[Flow] = FairQueue()
    for flow, length in lengths.items():
        for _ in range(length):
            queue.put(flow, flow)
    order = []
    while (item := queue.take(always)) is not None:
        order.append(item[1])

    for flow in lengths:
        turns = [index for index, taken in enumerate(order) if taken == flow]
        for first, second in pairwise(turns):
            between = order[first + 1 : second]
            assert len(between) == len(set(between))
