"""What sets a function off, as people write it in `[[trigger]]`. Pure data; which values make sense together is for `registry/checks.py` to say."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

Verify = Literal["standard", "github", "stripe", "slack", "hmac-sha256", "token", "none"]
"""How a webhook's sender shows that it knows the secret; "none": anybody may send."""


class Trigger(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source of events: a subject (NATS wildcards allowed), a webhook, or a schedule."""

    subject: str = ""
    delivery: Literal["at-least-once", "at-most-once"] = "at-least-once"
    stream: str = ""  # one of the user's own, which has the subject, instead of FAAS_EVENTS
    webhook: str = ""  # POST /hooks/<tenant>/<webhook>
    verify: Verify | None = None
    secret: str = ""  # the name of one
    schedule: str = ""  # cron of five fields, or six with seconds first
    timezone: str = ""  # of the schedule, as IANA names it; "": UTC
    payload: Any = None  # of the schedule's events, as TOML or JSON has it; None: an empty object

    @property
    def body(self) -> bytes:
        """What the events of a schedule carry, as JSON."""
        return msgspec.json.encode({} if self.payload is None else self.payload)
