"""Dead letters: events that were given up, with their own headers and the reason. Owns how one looks; knows no function code."""

from __future__ import annotations

import structlog

from faas import subjects
from faas.bus.connection import Bus, encode_head
from faas.bus.outcomes import HEAD_LIMIT_BYTES, event_id_header
from faas.bus.pull import Delivery
from faas.bus.schedules import event_head, message_id_of
from faas.invocation import Invocation

log = structlog.get_logger()

DETAIL_CHARACTERS = 2000
BODY_BYTES = "Faas-Body-Bytes"
"""Of a letter whose event was stored at the limit of the bus: how long the body was that it lacks."""


class Letters:
    """Writes dead letters, each once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def bury(
        self,
        delivery: Delivery,
        key: tuple[str, str],
        *,
        letter_id: str,
        invocation: Invocation | None,
        outcome: str,
        reason: str,
        detail: str = "",
    ) -> None:
        """Give an event up for the function `key`. `letter_id` keeps a repetition from being stored twice; `invocation` None: it could not be decoded."""
        tenant, function = key
        event_id, source, due = f"{delivery.sequence}.{delivery.stored_at_ns}", delivery.stream, None
        if invocation is not None:
            event_id, source, due = invocation.event.id, invocation.event.source, invocation.due
        why = {
            "Faas-Reason": reason,
            "Faas-Outcome": outcome,
            "Faas-Invocation": letter_id,
            "Faas-Event-Id": event_id_header(event_id),
            "Faas-Event-Source": event_id_header(source),
            "Faas-Subject": due.subject if due is not None and due.subject else delivery.subject,
            "Faas-Msg-Id": due.message_id if due is not None else message_id_of(delivery.headers),
            "Faas-Redrive-Of": due.redrive_of if due is not None else "",
            "Faas-Detail": detail[:DETAIL_CHARACTERS].encode("ascii", "backslashreplace").decode(),
        }
        own = [*((name, value) for name, value in why.items() if value), ("Nats-Msg-Id", letter_id)]
        ours = {
            name.lower() for name in (*why, BODY_BYTES)
        }  # also where there is nothing to say: an event may have such headers of its own
        kept = [(name, value) for name, value in event_head(delivery.headers) if name.lower() not in ours]
        while kept and len(encode_head([*kept, *own])) > HEAD_LIMIT_BYTES:
            kept.remove(max(kept, key=lambda pair: len(pair[1])))  # with ours beside them they are more than a stream takes
        head, body = encode_head([*kept, *own]), delivery.data
        if len(head) + len(body) > self._bus.body_limit_bytes:
            # The event was stored at the limit; it stays in its own stream, named by Faas-Subject and Faas-Event-Id.
            log.warning("letter.without_body", tenant=tenant, function=function, letter_id=letter_id, body_bytes=len(body))
            head, body = encode_head([*kept, *own, (BODY_BYTES, str(len(body)))]), b""
        await self._bus.store(subjects.dead(tenant, function), body, head=head)
