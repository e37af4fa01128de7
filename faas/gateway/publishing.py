"""Events that came in by HTTP onto the bus: in binary mode, stored before anybody is told so, large bodies in the object store. Knows no request."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import structlog

from faas.bus.cloudevents import STRUCTURED, binary_head
from faas.bus.connection import Bus, NoStream, Stored, encode_head
from faas.bus.declared import EVENTS_AGE_S, PAYLOADS_BEFORE_S
from faas.bus.payloads import Payloads
from faas.bus.reading import holds_another
from faas.errors import BusUnavailable, StoreRefused
from faas.objects import READ_ONCE, name_in, part_of

log = structlog.get_logger()

STORE_S = 5.0


class EventStore:
    """What stores events. Every method raises BusUnavailable where the bus does not have it."""

    def __init__(self, bus: Bus, payloads: Payloads) -> None:
        self._bus, self._payloads = bus, payloads

    async def store(
        self, subject: str, data: bytes, attributes: Mapping[str, str], *, message_id: str, content_type: str, once: bool
    ) -> Stored:
        """Store one event, and where. `attributes` are those of CloudEvents; by `message_id` the stream knows it if it comes again; `once`: one
        function alone gets it.

        Raises StoreRefused where the stream or the bucket is full.
        """
        if not self._bus.connected:
            raise BusUnavailable("the bus is away; send it again")  # at once: whoever waits here would hold a connection of ours
        # As an attribute where the header would make the whole body an event of its own, with another id.
        typed = {"datacontenttype": content_type} if content_type.lower().startswith(STRUCTURED) else {}
        head = binary_head({"specversion": "1.0", **attributes, **typed})
        if content_type and not typed:
            head += encode_head([("Content-Type", content_type)])
        stored = await self._put(subject, data, head + encode_head([("Nats-Msg-Id", message_id)]), once=once)
        if stored.duplicate and await holds_another(self._bus, stored, subject):
            log.warning("event.id_taken", subject=subject, message_id=message_id, sequence=stored.sequence)
            return await self._put(subject, data, head, once=once)
        return stored

    async def _put(self, subject: str, data: bytes, head: bytes, *, once: bool) -> Stored:
        if len(head) + len(data) <= self._bus.body_limit_bytes:
            return await self._bus.store(subject, data, head=head, timeout_s=STORE_S)
        prefix = f"{READ_ONCE if once else ''}{secrets.token_urlsafe(16)}"
        claim = await self._payloads.put(part_of(data), len(data), prefix=prefix, kept_s=EVENTS_AGE_S + PAYLOADS_BEFORE_S)
        try:
            stored = await self._bus.store(subject, b"", head=head + binary_head({"dataref": claim}), timeout_s=STORE_S)
        except (NoStream, StoreRefused):  # any other error leaves open whether it was stored, and then its body is needed
            await self._let_go(claim)
            raise
        if stored.duplicate:  # the one that was stored has its own
            await self._let_go(claim)
        return stored

    async def _let_go(self, claim: str) -> None:
        await self._payloads.let_go(name_in(claim) or "")
