"""What a caller writes, read: names, invocations, durations, deadlines. Pure; every refusal says what would be right."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from faas.errors import ConfigInvalid, NoSuchFunction
from faas.identity import key_problem
from faas.model import NAME_PATTERN
from faas.units import Duration

ANSWER_S = 3600.0
"""Without a timeout: the function's own clocks end a call long before, unless its node is gone."""
SLACK_S = 5.0
"""Beyond a deadline: for the answer that says so."""
LONGEST_S = 1e9  # no date is further away than this, and no function may take as long
KEY = "Faas-Idempotency-Key"
_NAME = re.compile(NAME_PATTERN)
_INVOCATION = re.compile(r"[a-z2-7]{26}")


def check_name(function: str, tenant: str) -> None:
    """Names that no function can have have no subject either."""
    for what, name in (("function", function), ("tenant", tenant)):
        if not _NAME.fullmatch(name):
            raise NoSuchFunction(f"no {what} {name!r}: a name begins with a-z, then a-z, 0-9 and -; `faas functions` lists what there is")


def check_invocation(invocation: str) -> None:
    """Raises ConfigInvalid."""
    if not _INVOCATION.fullmatch(invocation):
        raise ConfigInvalid(
            f"{invocation[:80]!r} is no invocation: its id has 26 letters and digits, as `faas runs` and `faas invoke --async` print it"
        )


def deadline_in(head: dict[str, str], timeout: str | float | None) -> float:
    """How many seconds to wait for an answer; puts the moment into the head, so that the node ends it first."""
    if timeout is None:
        return ANSWER_S
    wait_s = seconds_of(timeout)
    head.setdefault("Faas-Deadline", (datetime.now(UTC) + timedelta(seconds=min(wait_s, LONGEST_S))).isoformat())
    return wait_s + SLACK_S


def seconds_of(duration: str | float, what: str = "timeout") -> float:
    try:
        return float(Duration.parse(duration)) if isinstance(duration, str) else float(duration)
    except ValueError as error:
        raise ConfigInvalid(f"{what}: {error}") from error


def keyed(head: dict[str, str], key: str | None) -> bool:
    """Put an idempotency key into the head; whether there is one, given here or there. Raises ConfigInvalid."""
    found = [value for name, value in head.items() if name.lower() == KEY.lower()]
    if key is not None:
        head[KEY] = key
        found.append(key)
    for text in found:
        if (problem := key_problem(text)) is not None:
            raise ConfigInvalid(f"idempotency key: {problem}")
    if len(set(found)) > 1:
        raise ConfigInvalid(f"there are two idempotency keys, {found[0]!r} and {found[1]!r}; give one of them")
    return bool(found)
