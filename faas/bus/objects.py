"""A bucket of the object store (ADR-20): large bodies in chunks of a stream, so that any NATS client can read what this one wrote.

Knows no meaning of a name. Chunks are read by direct get, one after another: a consumer for each read, as clients make them, stays behind for
seconds, and a stream takes a thousand of them.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from faas.bus.connection import ApiError, Bus, NoStream, encode_head
from faas.bus.declared import StreamConfig
from faas.bus.streams import ensure_stream, find_stream
from faas.errors import ObjectDamaged

CHUNK_BYTES = 128 * 1024
"""What ADR-20 recommends; 256 KiB read no faster here."""
_ROLLUP = encode_head([("Nats-Rollup", "sub")])


class _Meta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    bucket: str
    nuid: str
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


class ObjectStore:
    """One bucket. `ensure` it once; an object is whole or absent."""

    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bus, self._stream, self.bucket = bus, f"OBJ_{bucket}", bucket

    async def ensure(self, *, replicas: int, max_bytes: int, max_age_s: float = 0.0) -> None:
        """Make the bucket, or make it what it must be. Raises BusUnavailable in the server's words."""
        await ensure_stream(
            self._bus,
            StreamConfig(
                name=self._stream,
                subjects=(f"$O.{self.bucket}.C.>", f"$O.{self.bucket}.M.>"),
                discard="new",
                max_age=round(max_age_s * 1e9),
                max_bytes=max_bytes,
                duplicate_window=round(min(120.0, max_age_s or 120.0) * 1e9),
                num_replicas=replicas,
                allow_rollup_hdrs=True,
            ),
        )

    async def present(self) -> bool:
        """Whether the bucket is there."""
        return await find_stream(self._bus, self._stream) is not None

    async def has(self, name: str) -> bool:
        """Whether an object of that name is there whole."""
        return await self._meta(name) is not None

    async def put(self, name: str, data: bytes) -> None:
        """Write an object; one of that name is replaced once this one is whole. Raises BusUnavailable, StoreRefused where the bucket is full."""
        before = await self._meta(name)
        nuid = secrets.token_hex(11)
        chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        for chunk in chunks:
            await self._bus.store(f"$O.{self.bucket}.C.{nuid}", chunk)
        meta = _Meta(
            name=name, bucket=self.bucket, nuid=nuid, size=len(data), mtime=_now(), chunks=len(chunks), digest=_digest(hashlib.sha256(data))
        )
        await self._bus.store(self._meta_subject(name), msgspec.json.encode(meta), head=_ROLLUP)
        if before is not None:
            await self._purge(before.nuid)

    async def get(self, name: str) -> bytes | None:
        """The whole object, None where there is none. Raises ObjectDamaged where it is not what was written, BusUnavailable."""
        meta = await self._meta(name)
        if meta is None:
            return None
        parts: list[bytes] = []
        sequence = 0
        for _ in range(meta.chunks):
            which = msgspec.json.encode({"seq": sequence + 1, "next_by_subj": f"$O.{self.bucket}.C.{meta.nuid}"})
            chunk = await self._bus.request(f"$JS.API.DIRECT.GET.{self._stream}", which)
            if chunk.status or not chunk.headers or "Nats-Sequence" not in chunk.headers:
                raise ObjectDamaged(f"{self.bucket}/{name}: only {len(parts)} of {meta.chunks} chunks are there")
            sequence = int(chunk.headers["Nats-Sequence"])
            parts.append(chunk.data)
        data = b"".join(parts)
        if len(data) != meta.size or _digest(hashlib.sha256(data)) != meta.digest:
            raise ObjectDamaged(f"{self.bucket}/{name}: is not what was written: its digest differs")
        return data

    async def delete(self, name: str) -> None:
        """Remove an object and its chunks; nothing where there is none."""
        meta = await self._meta(name)
        if meta is not None:
            gone = _Meta(name=name, bucket=self.bucket, nuid=meta.nuid, mtime=_now(), deleted=True)
            await self._bus.store(self._meta_subject(name), msgspec.json.encode(gone), head=_ROLLUP)
            await self._purge(meta.nuid)

    async def _purge(self, nuid: str) -> None:
        await self._bus.api(f"STREAM.PURGE.{self._stream}", {"filter": f"$O.{self.bucket}.C.{nuid}"}, dict[str, object])

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def _meta(self, name: str) -> _Meta | None:
        try:
            stored = await self._bus.last_stored(self._stream, self._meta_subject(name))
        except (NoStream, ApiError) as error:
            if isinstance(error, ApiError) and error.status != 404:
                raise
            return None
        meta = msgspec.json.decode(stored.data, type=_Meta) if stored is not None else None
        return None if meta is None or meta.deleted else meta


def _digest(hashed: hashlib._Hash) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(hashed.digest()).decode()}"


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
