"""A bucket of the object store that is kept until somebody removes from it: small bodies, whole in memory, each named by its digest.

How an object is written and read is `faas.objects`; this owns the bucket, and knows no meaning of what is in it.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode

from faas.bus.connection import Bus
from faas.bus.declared import StreamConfig
from faas.bus.payloads import OnBus
from faas.bus.streams import ensure_stream, find_stream
from faas.errors import PayloadLost
from faas.objects import Objects, part_of


class ObjectStore:
    """One bucket. `ensure` it once; an object is whole or absent, and what its name means never changes."""

    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bus, self._stream, self.bucket = bus, f"OBJ_{bucket}", bucket
        self._objects = Objects(OnBus(bus), bucket)

    async def ensure(self, *, replicas: int, max_bytes: int, bounded: bool = True) -> None:
        """Make the bucket, or make it what it must be; without `bounded` one that is there keeps its size. Raises BusUnavailable in the server's words."""
        await ensure_stream(
            self._bus,
            StreamConfig(
                name=self._stream,
                subjects=(f"$O.{self.bucket}.C.>", f"$O.{self.bucket}.M.>"),
                discard="new",
                max_age=0,
                max_bytes=max_bytes,
                num_replicas=replicas,
                allow_rollup_hdrs=True,
            ),
            bounded=bounded,
        )

    async def present(self) -> bool:
        """Whether the bucket is there."""
        return await find_stream(self._bus, self._stream) is not None

    async def has(self, name: str) -> bool:
        """Whether an object of that name is there whole."""
        try:
            await self._objects.find(name)
        except PayloadLost:
            return False
        return True

    async def put(self, prefix: str, data: bytes) -> str:
        """Write a body where it is not there yet; its name. Raises BusUnavailable, StoreRefused where the bucket is full."""
        name = f"{prefix}.{urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')}"
        if not await self.has(name):
            await self._objects.write(part_of(data), len(data), prefix=prefix, kept_s=None)
        return name

    async def get(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole object, checked by its digest. Raises PayloadLost where it is not there, damaged or larger, BusUnavailable."""
        info = await self._objects.find(name)
        if info.size > limit_bytes:
            raise PayloadLost(f"the object {name} in {self.bucket} has {info.size} bytes; {limit_bytes} at most")
        return b"".join([b"".join(chunks) async for chunks in self._objects.read(info)])

    async def delete(self, name: str) -> None:
        """Remove an object; nothing where there is none."""
        try:
            await self._objects.remove(await self._objects.find(name))
        except PayloadLost:
            return
