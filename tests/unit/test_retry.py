"""What is tried again, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.model import OUTCOME_OF_REASON, Ended, RetryPolicy
from faas.scheduling.retry import DELIVERIES_BEYOND_ATTEMPTS, LAST_GIVEN_BACK_S, delay_s, given_back_s
from faas.units import Duration


@pytest.mark.parametrize("reason", ["worker_lost", "oom", "protocol_error", "gpu_oom", "gpu_memory", "gpu_fault"])
def test_crashes_and_gpu_faults_are_tried_again_by_default(reason: str) -> None:
    """They are the machine's fault more often than the event's."""
    assert delay_s(RetryPolicy(), Ended(reason=reason), attempts=1, random=0.5) == 1.0


@pytest.mark.parametrize(
    "reason", sorted(set(OUTCOME_OF_REASON) - {"worker_lost", "oom", "protocol_error", "gpu_oom", "gpu_memory", "gpu_fault"})
)
def test_every_other_end_is_final_by_default(reason: str) -> None:
    """An error that the event causes would be paid for three times."""
    assert delay_s(RetryPolicy(), Ended(reason=reason), attempts=1, random=0.5) is None


@pytest.mark.parametrize(("on", "reason"), [("timeout", "timeout"), ("timeout", "load_timeout"), ("error", "error")])
def test_timeouts_and_errors_are_tried_again_where_the_function_says_so(on: str, reason: str) -> None:
    """`retry.on` names the classes of the contract."""
    policy = RetryPolicy(on=(on,))  # type: ignore[arg-type]

    assert delay_s(policy, Ended(reason=reason), attempts=1, random=0.0) == 0.0


def test_the_last_attempt_is_final() -> None:
    """`max_attempts` counts this one."""
    assert delay_s(RetryPolicy(max_attempts=2), Ended(reason="oom"), attempts=2, random=0.5) is None


def test_a_handlers_retry_is_after_what_it_asked_whatever_on_says() -> None:
    """It knows when its upstream is back; jitter on top would be wrong."""
    assert delay_s(RetryPolicy(on=()), Ended(reason="error", retry_after_s=7.5), attempts=1, random=0.9) == 7.5


def test_a_handlers_retry_uses_up_attempts_too() -> None:
    """Else one event could go round for ever."""
    assert delay_s(RetryPolicy(max_attempts=3), Ended(reason="error", retry_after_s=1.0), attempts=3, random=0.9) is None


@given(attempts=st.integers(1, 500), random=st.floats(0, 1, exclude_max=True), backoff=st.floats(0.001, 100), top=st.floats(0.001, 1000))
def test_back_off_lies_between_zero_and_its_bounds(attempts: int, random: float, backoff: float, top: float) -> None:
    """Full jitter over a doubled window, never above max_backoff."""
    policy = RetryPolicy(max_attempts=1000, backoff_s=Duration(backoff), max_backoff_s=Duration(top))
    delay = delay_s(policy, Ended(reason="oom"), attempts=attempts, random=random)

    assert delay is not None
    assert 0 <= delay <= min(top, backoff * 2.0 ** min(attempts - 1, 62))


def test_a_delivery_that_ended_nowhere_waits_longer_each_time() -> None:
    """Twenty of them last a quarter of an hour: a bus that ails for minutes costs no event its outcome."""
    waits = [given_back_s(deliveries) for deliveries in range(1, DELIVERIES_BEYOND_ATTEMPTS + 1)]

    assert waits[:3] == [1.0, 2.0, 4.0]
    assert waits == sorted(waits)
    assert sum(waits) > 15 * 60 > waits[-1]
    assert given_back_s(10_000) == LAST_GIVEN_BACK_S
