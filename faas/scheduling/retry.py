"""Whether an ended attempt is tried again, and after how long. Pure: the random number is passed in."""

from __future__ import annotations

from collections.abc import Mapping

from faas.model import Ended, RetryPolicy

CLASS_OF_REASON: Mapping[str, str] = {
    **dict.fromkeys(("worker_lost", "oom", "protocol_error"), "crash"),
    **dict.fromkeys(("gpu_oom", "gpu_memory", "gpu_fault"), "gpu"),
    **dict.fromkeys(("timeout", "load_timeout"), "timeout"),
    "error": "error",
}
"""Which word of `retry.on` stands for a reason; a reason without one is final."""

DELIVERIES_BEYOND_ATTEMPTS = 20
"""Drains and node deaths use up deliveries without being attempts; so many more than `max_attempts` end as `fate_unknown`."""


FIRST_GIVEN_BACK_S, LAST_GIVEN_BACK_S = 1.0, 60.0
"""Of a delivery whose end could not be written: a bus that ails for a quarter of an hour must not use up its deliveries."""


def given_back_s(deliveries: int) -> float:
    """After so many seconds a delivery comes again that ended nowhere; `deliveries` counts this one. Doubled each time."""
    return min(LAST_GIVEN_BACK_S, FIRST_GIVEN_BACK_S * 2.0 ** min(deliveries - 1, 10))


def delay_s(policy: RetryPolicy, ended: Ended, *, attempts: int, random: float) -> float | None:
    """Seconds until the next attempt, or None where this end is final.

    `attempts` counts the billable ones so far, this one included; `random` is uniform in [0, 1). Exponential back-off
    with full jitter: uniform between 0 and min(max_backoff, backoff * 2^(attempts - 1)). A handler's own `Retry` is
    tried again whatever `on` says, after exactly what it asked for.
    """
    if attempts >= policy.max_attempts:
        return None
    if ended.retry_after_s is not None:
        return max(0.0, ended.retry_after_s)
    if CLASS_OF_REASON.get(ended.reason) not in policy.on:
        return None
    doublings = min(attempts - 1, 62)  # beyond that any back-off is at its maximum; keeps the float finite
    return random * min(policy.max_backoff_s, policy.backoff_s * 2.0**doublings)
