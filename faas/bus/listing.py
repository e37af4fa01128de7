"""The consumers of a stream as they stand, and whose each of them is. Reads; makes and changes none."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from faas.bus.connection import ApiError, Bus

OWNER = "faas-function"
"""Metadata of a consumer: whose it is."""
REMADE = "faas-remade"
"""Metadata of a consumer that was made again: the last sequence of its stream at that moment."""
NO_STREAM, NO_CONSUMER = 10059, 10014


def owner(tenant: str, name: str) -> str:
    """Of a consumer, as its metadata say it."""
    return f"{tenant}/{name}"


class _Place(Struct, frozen=True):
    stream_seq: int = 0


class ConsumerSeen(Struct):
    """One consumer, as far as it matters here."""

    name: str
    config: dict[str, Any]
    delivered: _Place = _Place()
    ack_floor: _Place = _Place()
    num_pending: int = 0
    num_ack_pending: int = 0

    @property
    def function(self) -> str:
        """`<tenant>/<function>`, as we wrote it."""
        return str((self.config.get("metadata") or {}).get(OWNER, ""))

    @property
    def repeats_upto(self) -> int:
        """The sequence up to which one of its name may have delivered before it was made again; 0 where it never was."""
        text = str((self.config.get("metadata") or {}).get(REMADE, ""))
        return int(text) if text.isascii() and text.isdecimal() else 0

    @property
    def filters(self) -> list[str]:
        """The subjects that it takes."""
        return [*(self.config.get("filter_subjects") or ()), *filter(None, [self.config.get("filter_subject")])]

    @property
    def has_backlog(self) -> bool:
        """Whether something waits for it, or was delivered and not settled."""
        return bool(self.num_pending or self.num_ack_pending)


class _ConsumerPage(Struct):
    total: int = 0
    consumers: tuple[ConsumerSeen, ...] | None = ()


async def consumers_of(bus: Bus, stream: str) -> dict[str, ConsumerSeen]:
    """All of them by name; none where there is no such stream."""
    found: dict[str, ConsumerSeen] = {}
    while True:
        try:
            page = await bus.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)}, _ConsumerPage)
        except ApiError as error:
            if error.number == NO_STREAM:
                return {}
            raise
        found |= {consumer.name: consumer for consumer in page.consumers or ()}
        if not page.consumers or len(found) >= page.total:
            return found
