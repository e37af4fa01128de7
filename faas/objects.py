"""Objects in a bucket, as every NATS client writes and reads them (ADR-20): names, metadata, chunks, digests, and the order in which they are moved.

Moves a few chunks at a time, so that no body is ever whole in memory because of it. Knows no connection: node and client
each bring a `Transport`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from faas import subjects
from faas.errors import BusUnavailable, FaasError, PayloadLost, StoreRefused

CHUNK_BYTES = 256 * 1024
IN_FLIGHT = 8
"""Chunks on their way to the stream at once: 2 MiB."""
BATCH_CHUNKS, BATCH_BYTES = 64, 2 * 2**20
"""Asked for at once; the next batch comes while the last one is taken."""
SILENCE_S, ASKED_TIMES = 3.0, 5
"""So long without a chunk it is asked again, so often; a restart of the server takes less."""
READ_ONCE = "once."
"""A name that begins so is of an object that one invocation alone reads: it goes when that has ended well."""
NO_MESSAGE = 10037
END_OF_BATCH = 204
Count = Annotated[int, Meta(ge=0)]
_OURS = re.compile(r"[A-Za-z0-9_.-]+\.([A-Za-z0-9_-]{43})")

Read = Callable[[int, int], bytes]
"""(offset, length) -> that part of a body; called off the event loop."""


class Options(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of an object. A link to another object is not followed: whoever wrote it could point anywhere."""

    max_chunk_size: int | None = None
    link: Mapping[str, Any] | None = None


class ObjectInfo(Struct, frozen=True, kw_only=True):
    """The metadata of an object; `digest` is `SHA-256=` and URL-safe base64."""

    name: str
    bucket: str
    nuid: str
    size: Count = 0
    mtime: str = ""
    chunks: Count = 0
    digest: str = ""
    deleted: bool = False
    options: Options | None = None


@dataclass(slots=True, frozen=True)
class Heard:
    """One answer to a batched direct get; `status` is NATS' inline status, 0 for a message of the stream."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class Found(Struct, frozen=True):
    """A message of a stream; `data` is base64."""

    data: str = ""


class Problem(Struct, frozen=True):
    """JetStream's word for why not."""

    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True):
    """What is read of JetStream's answers, acknowledgements included."""

    error: Problem | None = None
    seq: int = 0
    message: Found | None = None


class Refused(FaasError):
    """JetStream refused a request; `number` is its err_code."""

    code = "api_error"

    def __init__(self, description: str, number: int) -> None:
        super().__init__(f"{description} ({number})")
        self.number = number


class Transport(Protocol):
    """What is asked of a connection. Every method raises BusUnavailable where the bus does not answer in time."""

    async def store(self, subject: str, body: bytes, head: Mapping[str, str]) -> int:
        """Publish to a stream; its sequence there. Raises StoreRefused."""

    async def api(self, suffix: str, request: Mapping[str, object]) -> Answer:
        """One call of the JetStream API. Raises Refused."""

    def listening(self) -> AbstractAsyncContextManager[tuple[str, asyncio.Queue[Heard]]]:
        """A new inbox, and what arrives there."""

    async def say(self, subject: str, body: bytes, reply: str) -> None:
        """Publish, and let the answers go to `reply`."""

    @property
    def chunk_limit_bytes(self) -> int:
        """The largest chunk that can be stored."""


def reference(name: str) -> str:
    """What `Faas-Object` and `dataref` say of an object of FAAS_PAYLOADS."""
    return f"{subjects.PAYLOADS}/{name}"


def name_in(text: str) -> str | None:
    """The name of the object of FAAS_PAYLOADS that a reference means; None where it means anything else."""
    bucket, slash, name = text.partition("/")
    fine = bucket == subjects.PAYLOADS and slash and 0 < len(name) <= 512 and name.isprintable()
    return name if fine else None


def part_of(body: bytes) -> Read:
    """The parts of a body that is in memory."""
    view = memoryview(body)
    return lambda offset, length: bytes(view[offset : offset + length])


def part_of_file(descriptor: int) -> Read:
    """The parts of a body that is in a file."""
    return lambda offset, length: os.pread(descriptor, length, offset)


class Objects:
    """The objects of one bucket."""

    def __init__(self, transport: Transport, bucket: str = subjects.PAYLOADS) -> None:
        self._transport, self._bucket, self._stream = transport, bucket, f"OBJ_{bucket}"
        self._abandoned: set[str] = set()  # chunks of objects that were not finished

    # ------------------------------------------------------------ reading

    async def find(self, name: str) -> ObjectInfo:
        """What is known of an object, by the stream's leader: a replica may not have it yet. Raises PayloadLost, BusUnavailable."""
        try:
            found = await self._transport.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": self._meta_subject(name)})
            info = msgspec.json.decode(base64.b64decode(found.message.data if found.message is not None else ""), type=ObjectInfo)
        except Refused as error:
            if error.number != NO_MESSAGE:
                raise BusUnavailable(f"the bucket {self._bucket} cannot be read: {error}") from error
            raise PayloadLost(f"there is no object {name} in {self._bucket}; its time may be over") from None
        except (msgspec.DecodeError, ValueError) as error:
            raise PayloadLost(f"the metadata of the object {name} in {self._bucket} cannot be read") from error
        if info.deleted or (info.options is not None and info.options.link is not None):
            raise PayloadLost(f"the object {name} in {self._bucket} is {'deleted' if info.deleted else 'a link, which is not followed'}")
        if not info.nuid.isalnum() or not info.digest.startswith("SHA-256="):
            raise PayloadLost(f"the metadata of the object {name} in {self._bucket} has no digest, or no chunks that can be found")
        return info

    async def read(self, info: ObjectInfo) -> AsyncGenerator[list[bytes], None]:
        """Its bytes in order, some chunks at a time; true only once the last have come without an error. Raises PayloadLost, BusUnavailable."""
        reading = _Reading(info, self._chunk_subject(info.nuid))
        digest = hashlib.sha256()
        async with self._transport.listening() as (inbox, heard):

            async def ask() -> None:
                with suppress(
                    BusUnavailable
                ):  # away in this moment: a question that nobody heard is asked again, like one without an answer
                    await self._transport.say(f"$JS.API.DIRECT.GET.{self._stream}", reading.request(), inbox)

            asked = 1
            if not reading.whole:
                await ask()
            while not reading.whole:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        said = await heard.get()
                except TimeoutError:
                    asked += 1
                    if asked > ASKED_TIMES:
                        raise BusUnavailable(f"the object {info.name}: no answer within {SILENCE_S * ASKED_TIMES:g} s") from None
                    await ask()
                    continue
                if said.status == 0:
                    asked = 1
                    reading.take(said)
                elif said.status != END_OF_BATCH:
                    raise await self._missing(info, reading, said)
                if (reading.whole or said.status) and (taken := reading.taken()):
                    if not reading.whole:
                        await ask()
                    await asyncio.to_thread(_update, digest, taken)
                    yield taken
        if _text(digest.digest()) != info.digest or reading.size_bytes != info.size or not _named_so(info):
            raise PayloadLost(f"the object {info.name} in {self._bucket} is not what its digest says")

    async def _missing(self, info: ObjectInfo, reading: _Reading, said: Heard) -> FaasError:
        """Why a chunk was not found: it is gone, or only the replica that answered lags."""
        try:
            await self._transport.api(f"STREAM.MSG.GET.{self._stream}", {"seq": reading.next_sequence, "next_by_subj": reading.subject})
        except Refused as error:
            if error.number == NO_MESSAGE:
                return PayloadLost(f"the object {info.name} in {self._bucket} has lost some of its chunks")
            return BusUnavailable(f"the object {info.name}: {error}")
        return BusUnavailable(f"the object {info.name}: {said.headers.get('Description', said.status)}")

    # ------------------------------------------------------------ writing

    async def write(self, read: Read, size_bytes: int, *, prefix: str, kept_s: float | None) -> str:
        """Put a body into the bucket for so long, None: as long as the bucket keeps it; its name, which is `prefix` and its digest: what it names never changes.

        The metadata is written last, so that an object is whole once it can be found. Raises StoreRefused, BusUnavailable.
        """
        await self._purge_abandoned()
        nuid = secrets.token_hex(11)
        ttl = {"Nats-TTL": f"{max(1, round(kept_s))}s"} if kept_s is not None else {}
        step = min(CHUNK_BYTES, self._transport.chunk_limit_bytes)
        try:
            digest = await self._write_chunks(read, size_bytes, subject=self._chunk_subject(nuid), step=step, head=ttl)
            name = f"{prefix}.{_plain(digest)}"
            info = ObjectInfo(
                name=name,
                bucket=self._bucket,
                nuid=nuid,
                size=size_bytes,
                mtime=datetime.now(UTC).isoformat(),
                chunks=-(-size_bytes // step),
                digest=_text(digest),
                options=Options(max_chunk_size=step),
            )
            await self._transport.store(self._meta_subject(name), msgspec.json.encode(info), {**ttl, "Nats-Rollup": "sub"})
        except (StoreRefused, PayloadLost):
            self._abandoned.add(nuid)
            await self._purge_abandoned()
            raise
        except BaseException:
            self._abandoned.add(nuid)  # the bus is away, or whoever waited is gone; the next write clears up
            raise
        return name

    async def _write_chunks(self, read: Read, size_bytes: int, *, subject: str, step: int, head: Mapping[str, str]) -> bytes:
        """Every chunk acknowledged, in their order; the digest of all."""
        digest = hashlib.sha256()
        room = asyncio.Semaphore(IN_FLIGHT)
        sequences: dict[int, int] = {}  # offset -> place in the stream
        failures: list[FaasError] = []

        async def store(offset: int, chunk: bytes) -> None:
            try:
                sequences[offset] = await self._transport.store(subject, chunk, head)
            except FaasError as error:
                failures.append(error)
            finally:
                room.release()

        def next_chunk(offset: int) -> bytes:
            chunk = read(offset, min(step, size_bytes - offset))
            digest.update(chunk)
            return chunk

        async with asyncio.TaskGroup() as group:
            for offset in range(0, size_bytes, step):
                chunk = await asyncio.to_thread(next_chunk, offset)
                await room.acquire()
                if len(chunk) != min(step, size_bytes - offset):
                    failures.append(PayloadLost("the body became shorter while it was read"))
                if failures:
                    break
                group.create_task(store(offset, chunk))
        if failures:
            raise failures[0]
        placed = [sequences[offset] for offset in sorted(sequences)]
        if placed != sorted(placed):
            raise BusUnavailable(f"{self._bucket}: the connection was lost between two chunks")  # out of order they are another body
        return digest.digest()

    async def remove(self, info: ObjectInfo) -> None:
        """Let it go before its time. Raises BusUnavailable, Refused."""
        for subject in (self._meta_subject(info.name), self._chunk_subject(info.nuid)):
            await self._transport.api(f"STREAM.PURGE.{self._stream}", {"filter": subject})

    async def _purge_abandoned(self) -> None:
        """Chunks of no object would hold their room until their time is over; where the bus is away, the next write tries again."""
        for nuid in list(self._abandoned):
            with suppress(FaasError):
                await self._transport.api(f"STREAM.PURGE.{self._stream}", {"filter": self._chunk_subject(nuid)})
                self._abandoned.discard(nuid)

    def _chunk_subject(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


class _Reading:
    """How far an object has been read."""

    def __init__(self, info: ObjectInfo, subject: str) -> None:
        self._info, self.subject = info, subject
        self.next_sequence, self.size_bytes, self._chunks = 1, 0, 0
        self._taken: list[bytes] = []

    @property
    def whole(self) -> bool:
        return self._chunks >= self._info.chunks

    def request(self) -> bytes:
        """The next batch."""
        wanted = {"seq": self.next_sequence, "next_by_subj": self.subject, "batch": BATCH_CHUNKS, "max_bytes": BATCH_BYTES}
        return msgspec.json.encode(wanted)

    def take(self, said: Heard) -> None:
        """A chunk; one that came before is passed over. Raises PayloadLost where there is more than the metadata says, BusUnavailable."""
        try:
            sequence = int(said.headers.get("Nats-Sequence", ""))
        except ValueError:
            raise BusUnavailable(f"the object {self._info.name}: answered by something that is no stream") from None
        if sequence < self.next_sequence or self.whole:
            return
        self.next_sequence, self._chunks = sequence + 1, self._chunks + 1
        self.size_bytes += len(said.data)
        if self.size_bytes > self._info.size:
            raise PayloadLost(f"the object {self._info.name} has more bytes than its metadata says")
        self._taken.append(said.data)

    def taken(self) -> list[bytes]:
        """What has come since the last call."""
        taken, self._taken = self._taken, []
        return taken


def _named_so(info: ObjectInfo) -> bool:
    """Whether a name that ends in a digest ends in this object's: one of ours that somebody has overwritten does not."""
    named = _OURS.fullmatch(info.name)
    return named is None or named[1] == info.digest.removeprefix("SHA-256=").rstrip("=")


def _update(digest: Any, chunks: list[bytes]) -> None:
    for chunk in chunks:
        digest.update(chunk)


def _text(digest: bytes) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(digest).decode()}"


def _plain(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
