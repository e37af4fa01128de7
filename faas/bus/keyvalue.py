"""A key-value bucket of JetStream (ADR-8): read and compared-and-swapped through the stream's leader, followed by what its stream has gained.

Knows no value. A bucket is a stream, so whoever remembers the last sequence that he has read gets every later change, and no watch can be lost.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

from msgspec import Struct

from faas.bus.connection import ApiError, Bus, encode_head
from faas.bus.declared import StreamConfig
from faas.bus.listing import NO_STREAM
from faas.bus.messages import decode_head
from faas.bus.streams import ensure_stream, find_stream

DELETED = ("DEL", "PURGE", "MaxAge", "Purge", "Remove")
"""Values of the headers `KV-Operation` and `Nats-Marker-Reason` that stand for a key that is gone."""


class Entry(Struct, frozen=True, kw_only=True):
    """One key as it stands. `revision` is what a swap is compared with, also of a key that is `deleted`; `stored_at` is RFC 3339 by the server's clock."""

    key: str
    value: bytes
    revision: int
    stored_at: str
    deleted: bool = False


class KeyValue:
    """One bucket. `ensure` it once; keys are tokens of a subject."""

    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bus, self._stream, self._prefix = bus, f"KV_{bucket}", f"$KV.{bucket}."
        self.bucket = bucket

    @property
    def subjects(self) -> str:
        """What a put of any key is published to: hearing one is a reason to look, and no more than that."""
        return f"{self._prefix}>"

    async def ensure(self, *, replicas: int, max_bytes: int = -1, max_age_s: float = 0.0, memory: bool = False) -> None:
        """Make the bucket, or make it what it must be. Raises BusUnavailable in the server's words."""
        await ensure_stream(
            self._bus,
            StreamConfig(
                name=self._stream,
                subjects=(self.subjects,),
                storage="memory" if memory else "file",
                discard="new",
                max_age=round(max_age_s * 1e9),
                max_bytes=max_bytes,
                max_msgs_per_subject=1,
                duplicate_window=round(min(120.0, max_age_s or 120.0) * 1e9),
                num_replicas=replicas,
                allow_rollup_hdrs=True,
                deny_delete=True,
            ),
        )

    async def present(self) -> bool:
        """Whether the bucket is there."""
        return await find_stream(self._bus, self._stream) is not None

    async def entry(self, key: str) -> Entry | None:
        """A key as it stands, one that was deleted too; None where it never was, or there is no such bucket."""
        return await self._get({"last_by_subj": f"{self._prefix}{key}"})

    async def since(self, revision: int) -> AsyncIterator[Entry]:
        """Every key that has changed after `revision`, once, as it stands now, in the order of the changes."""
        while (entry := await self._get({"seq": revision + 1, "next_by_subj": self.subjects})) is not None:
            revision = entry.revision
            yield entry

    async def standing(self) -> tuple[str, int]:
        """Which bucket it is, by when it was made, and its last revision; ("", 0) where there is none. One that was deleted and made again is another."""
        found = await find_stream(self._bus, self._stream)
        return (found.created, found.state.last_seq) if found is not None else ("", 0)

    async def put(self, key: str, value: bytes, *, expected: int | None = None) -> int:
        """Its revision. With `expected` a compare-and-swap, 0: there must be none. Raises AlreadyStored where somebody was faster, BusUnavailable."""
        return await self._write(key, value, expected)

    async def delete(self, key: str, *, expected: int | None = None) -> int:
        """Leave a mark that the key is gone. Raises as `put`."""
        return await self._write(key, b"", expected, operation="DEL")

    async def _write(self, key: str, value: bytes, expected: int | None, *, operation: str = "") -> int:
        head = [("KV-Operation", operation)] if operation else []
        if expected is not None:
            head.append(("Nats-Expected-Last-Subject-Sequence", str(expected)))
        return (await self._bus.store(f"{self._prefix}{key}", value, head=encode_head(head) if head else b"")).sequence

    async def _get(self, which: dict[str, object]) -> Entry | None:
        try:
            found = (await self._bus.get(self._stream, which)).message
        except ApiError as error:
            if error.status == 404 or error.number == NO_STREAM:
                return None
            raise
        if found is None:
            return None
        head = decode_head(base64.b64decode(found.hdrs)) if found.hdrs else {}
        return Entry(
            key=found.subject.removeprefix(self._prefix),
            value=base64.b64decode(found.data),
            revision=found.seq,
            stored_at=found.time,
            deleted=head.get("KV-Operation", head.get("Nats-Marker-Reason", "")) in DELETED,
        )
