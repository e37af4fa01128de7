"""W3C trace context of an attempt: a child of the event's, the same however often it is worked out. Pure; node and worker both use it.

Source: W3C Trace Context, level 1: version 00, trace id of 16 bytes, parent id of 8, flags.
"""

from __future__ import annotations

import hashlib
import re

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")


def span_of(traceparent: str, invocation_id: str, attempt: int) -> str:
    """The `traceparent` of an attempt.

    Where the event brought none that is valid, a trace begins with the invocation: not sampled, since nobody asked to record it.
    """
    digest = hashlib.sha256(f"{invocation_id}.{attempt}".encode()).hexdigest()
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        trace_id, flags = hashlib.sha256(invocation_id.encode()).hexdigest()[:32], "00"
    else:
        trace_id, flags = match[1], match[2]
    return f"00-{trace_id}-{digest[:16]}-{flags}"
