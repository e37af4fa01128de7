"""Start-time fair queueing: shares by weight, and that no flow waits for another's flood."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from faas.scheduling.fair_queue import STALE_ENTRIES, FairQueue, Flow

A, B, C = ("t", "a"), ("t", "b"), ("t", "c")
FLOWS = [("t", f"f{number}") for number in range(6)]

weights = st.sampled_from([0.01, 0.5, 1, 2, 3, 100])
costs = st.sampled_from([0.001, 0.05, 1, 7.5])
Bills = dict[Flow, tuple[float, float]]
"""(cost, weight) of a start of each flow."""
bills = st.dictionaries(st.sampled_from(FLOWS), st.tuples(costs, weights), min_size=2)


def always(flow: Flow) -> bool:
    return True


def alike(flow: Flow) -> tuple[float, float]:
    return 1, 1


def filled(lengths: dict[Flow, int]) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for flow, length in lengths.items():
        for item in range(length):
            queue.put(flow, item)
    return queue


def starts(queue: FairQueue[int], billed: Bills, count: int) -> list[Flow]:
    taken = [queue.take(always, billed.__getitem__) for _ in range(count)]
    return [one[0] for one in taken if one is not None]


def test_flows_take_turns_however_long_one_of_them_is() -> None:
    """A flood of one function must not make another's event wait behind it."""
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3"):
        queue.put(A, item)
    queue.put(B, "b1")

    assert [queue.take(always, alike) for _ in range(4)] == [(A, "a1"), (B, "b1"), (A, "a2"), (A, "a3")]


def test_twice_the_weight_is_twice_the_starts_and_twice_the_cost_half_of_them() -> None:
    """What is shared is time of slots, and not how often."""
    bill = {A: (1.0, 1.0), B: (1.0, 2.0), C: (2.0, 1.0)}
    order = starts(filled({A: 100, B: 100, C: 100}), bill, 70)

    assert Counter(order) == {A: 20, B: 40, C: 10}


def test_a_flow_that_may_not_start_blocks_nobody_and_is_next_once_it_may() -> None:
    """One at its cap waits; the others go on."""
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")
    for item in ("b1", "b2", "b3"):
        queue.put(B, item)

    assert [queue.take(lambda flow: flow == B, alike) for _ in range(2)] == [(B, "b1"), (B, "b2")]
    assert queue.take(lambda flow: flow == C, alike) is None
    assert queue.take(always, alike) == (A, "a1")


def test_a_flow_that_was_held_back_is_not_owed_what_it_missed() -> None:
    """A function that stood at its cap for an hour would have the node for the next one otherwise."""
    queue = filled({A: 50, B: 200})
    for _ in range(100):
        queue.take(lambda flow: flow == B, alike)
    order = starts(queue, {A: (1, 1), B: (1, 1)}, 20)

    assert Counter(order) == {A: 10, B: 10}


def test_starts_that_did_not_wait_count_too() -> None:
    """A function on warm workers takes its time of the slots like any other."""
    queue: FairQueue[int] = FairQueue()
    for _ in range(5):
        queue.pass_by(A, (1, 1))
    queue.put(A, 1)
    queue.put(B, 2)

    assert queue.take(always, alike) == (B, 2)


def test_a_rest_forgets_what_was_used() -> None:
    """Otherwise one long attempt of a light function would count against it a day later."""
    queue: FairQueue[int] = FairQueue()
    queue.pass_by(A, (1000, 0.01))
    queue.rest()
    queue.put(A, 1)
    queue.put(B, 2)

    assert queue.take(always, alike) == (A, 1)


def test_a_removed_item_is_never_taken() -> None:
    """It expired, or its delivery was lost, while it waited."""
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")

    assert queue.remove(A, "a1")
    assert not queue.remove(A, "a1")
    assert not queue
    assert queue.take(always, alike) is None


def test_items_that_give_up_leave_nothing_behind() -> None:
    """Callers that ask and give up for an hour, while every slot is busy, must not fill the memory."""
    queue: FairQueue[int] = FairQueue()
    for number in range(10 * STALE_ENTRIES):
        queue.put(A, number)
        queue.remove(A, number)

    assert len(queue._heap) <= STALE_ENTRIES + 2


def test_clear_returns_everything_that_waited() -> None:
    """A node that stops gives each of them back to the bus."""
    queue: FairQueue[str] = FairQueue()
    queue.put(A, "a1")
    queue.put(B, "b1")

    assert sorted(queue.clear()) == ["a1", "b1"]
    assert not queue
    assert queue.take(always, alike) is None


Act = tuple[str, Flow]
acts = st.lists(st.tuples(st.sampled_from(["put", "put", "take", "remove", "pass_by"]), st.sampled_from(FLOWS)), max_size=120)


@given(acts, bills, st.sets(st.sampled_from(FLOWS)))
def test_everything_comes_out_once_in_the_order_of_its_flow_whenever_its_flow_may_start(
    done: list[Act], known: Bills, capped: set[Flow]
) -> None:
    """Nothing is lost, nothing starts twice, what gave up never starts, and a slot is never left free while somebody may use it."""
    bill = {flow: known.get(flow, (1.0, 1.0)) for flow in FLOWS}
    queue: FairQueue[int] = FairQueue()
    model: dict[Flow, list[int]] = {flow: [] for flow in FLOWS}
    for position, (act, flow) in enumerate(done):
        if act == "put":
            queue.put(flow, position)
            model[flow].append(position)
        elif act == "remove" and model[flow]:
            gone = model[flow].pop(len(model[flow]) // 2)
            assert queue.remove(flow, gone)
        elif act == "pass_by" and not queue:
            queue.pass_by(flow, bill[flow])
        elif act == "take":
            taken = queue.take(lambda one: one not in capped, bill.__getitem__)
            assert (taken is None) == (not any(items for one, items in model.items() if one not in capped))
            if taken is not None:
                assert taken[1] == model[taken[0]].pop(0)
        assert bool(queue) == any(model.values())

    assert sorted(queue.clear()) == sorted(item for items in model.values() for item in items)


@given(bills, st.integers(0, 40))
def test_over_any_interval_two_flows_get_by_weight_within_one_start_of_each(bill: Bills, warm_up: int) -> None:
    """The bound that fairness means here. Source: Goyal, Vin and Cheng 1996, theorem 1."""
    queue = filled(dict.fromkeys(bill, 200))
    starts(queue, bill, warm_up)
    order = starts(queue, bill, 100)

    for one, other in combinations(bill, 2):
        (cost, weight), (other_cost, other_weight) = bill[one], bill[other]
        bound = cost / weight + other_cost / other_weight
        ahead = [0.0]  # of `one`, in time of slots by weight; an interval is a difference of two of these
        for flow in order:
            ahead.append(ahead[-1] + (cost / weight if flow == one else -other_cost / other_weight if flow == other else 0))
        assert max(ahead) - min(ahead) <= bound * (1 + 1e-9) + 1e-9


@given(bills, st.integers(0, 100))
def test_a_flow_that_comes_waits_for_one_start_of_every_other_at_most(bill: Bills, before: int) -> None:
    """However long the others' queues are, whatever they weigh and cost."""
    queue = filled(dict.fromkeys(bill, 300))
    starts(queue, bill, before)
    newcomer = ("t", "new")
    queue.put(newcomer, 1)
    order = starts(queue, {**bill, newcomer: (1, 1)}, len(bill) + 1)

    waited = order[: order.index(newcomer)]
    assert max(Counter(waited).values(), default=0) <= 1
