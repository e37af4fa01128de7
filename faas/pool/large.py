"""Large bodies between the object store and a worker's folder: payloads on their way in, results on their way out.

A body goes from the bucket into a file and from a file into the bucket, so that the node never holds one whole. Knows which
bodies are large and how long they are kept; how they are moved is `bus.payloads`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import structlog

from faas.bus.declared import EVENTS_AGE_S, PAYLOADS_BEFORE_S
from faas.bus.payloads import Payloads
from faas.errors import BusUnavailable, PayloadLost, ProtocolError
from faas.invocation import Invocation
from faas.model import Ended
from faas.objects import READ_ONCE, Read, name_in, part_of, part_of_file
from faas.pool.worker import Worker
from faas.units import format_above, format_size
from faas.worker import wire

log = structlog.get_logger()

ANSWER_KEPT_S = 600.0
"""Of a result that nothing stores: its caller fetches it at once."""
RETRY_S = 0.5
ANSWER_TRIES = 20
"""Of a result that nothing stores; that of a stored event is tried as long as its lease holds."""


class InlineLimit(Protocol):
    """The largest result that an outcome with so many usage records carries itself."""

    def __call__(self, attempts: int, *, content_type: str, event_id: str) -> int: ...


class LargeBodies:
    """Brings payloads to workers and takes results from them."""

    def __init__(self, payloads: Payloads, inline_limit_bytes: InlineLimit, *, outcome_retention_s: float) -> None:
        self._payloads, self._inline_limit_bytes, self._outcome_retention_s = payloads, inline_limit_bytes, outcome_retention_s

    # ------------------------------------------------------------ in

    async def find(self, invocation: Invocation) -> Ended | None:
        """Look up the object that is the payload; why there can be no attempt, or None. Raises BusUnavailable where the event comes again."""
        try:
            invocation.claimed = await self._payloads.find(invocation.event.dataref)
        except PayloadLost as error:
            return _lost(error)
        except BusUnavailable as error:
            return _unavailable(error, invocation)
        return None

    @contextmanager
    def place(self, invocation: Invocation, worker: Worker) -> Iterator[None]:
        """A file in the worker's folder for the payload; it is gone when the block is left."""
        invocation.payload_file = worker.new_file()
        try:
            yield
        finally:
            Path(worker.directory, invocation.payload_file).unlink(missing_ok=True)  # a worker that read it has removed it
            invocation.payload_file = ""

    async def bring(self, invocation: Invocation, worker: Worker) -> Ended | None:
        """Write the payload into its place; why there can be no attempt, or None. Raises BusUnavailable where the event comes again."""
        assert invocation.claimed is not None
        try:
            with os.fdopen(wire.create_spilled(worker.directory, invocation.payload_file), "wb") as file:
                await self._payloads.fetch(invocation.claimed, file)
        except PayloadLost as error:
            return _lost(error)
        except BusUnavailable as error:
            return _unavailable(error, invocation)
        except OSError as error:  # the disk is full, or the worker died and its folder is gone
            return _unavailable(BusUnavailable(f"it cannot be written into its worker's folder: {error.strerror}"), invocation)
        return None

    async def forget(self, invocation: Invocation) -> None:
        """It is over for good: a payload that was put there for it alone leaves the bucket."""
        if invocation.event.dataref.startswith(READ_ONCE):
            await self._payloads.let_go(invocation.event.dataref)

    # ------------------------------------------------------------ out

    def inline(self, answer: wire.Result, invocation: Invocation) -> Ended | None:
        """The end that a result is whose outcome carries it; None for one that is `kept` elsewhere."""
        if answer.file or len(answer.body) > self._limit_bytes(answer, invocation):
            return None
        return Ended(body=answer.body, content_type=answer.content_type)

    def _limit_bytes(self, answer: wire.Result, invocation: Invocation) -> int:
        return self._inline_limit_bytes(invocation.attempts + 1, content_type=answer.content_type, event_id=invocation.event.id)

    async def kept(self, answer: wire.Result, invocation: Invocation, worker: Worker) -> Ended:
        """The end that a large result is: with its body from a file, or the name of the object that holds it now. Raises BusUnavailable where the event comes again."""
        limit_bytes = self._limit_bytes(answer, invocation)
        size_bytes = answer.size if answer.file else len(answer.body)
        allowed_bytes = int(invocation.function.spec.limits.payload_bytes)
        if size_bytes > allowed_bytes:
            return Ended(
                reason="result_too_large",
                detail="the result has {}; limits.payload of the function is {}".format(*format_above(size_bytes, allowed_bytes)),
            )
        if not answer.file:
            return await self._put(part_of(answer.body), size_bytes, invocation, content_type=answer.content_type)
        try:
            descriptor = worker.open_body(answer)
        except ProtocolError as error:
            return Ended(reason="protocol_error", detail=str(error))
        try:
            if size_bytes <= limit_bytes:
                return Ended(body=await asyncio.to_thread(part_of_file(descriptor), 0, size_bytes), content_type=answer.content_type)
            return await self._put(part_of_file(descriptor), size_bytes, invocation, content_type=answer.content_type)
        except PayloadLost as error:
            worker.broken(f"a result that it changed afterwards: {error}")
            return Ended(reason="protocol_error", detail=f"worker {worker.id} changed its result after it was sent: {error}")
        finally:
            os.close(descriptor)

    async def _put(self, read: Read, size_bytes: int, invocation: Invocation, *, content_type: str) -> Ended:
        """A finished result is not run a second time because a server restarts, or because the bucket is full for a while."""
        prefix = f"{invocation.id}.{invocation.attempts + 1}"
        tries = ANSWER_TRIES
        while True:
            try:
                name = await self._payloads.put(read, size_bytes, prefix=prefix, kept_s=self._kept_s(invocation))
            except BusUnavailable as error:
                tries -= not invocation.stored
                if not tries:
                    return Ended(reason="error", detail=f"the result has {format_size(size_bytes)} and could not be stored: {error}")
                log.warning("payload.refused", invocation_id=invocation.id, size_bytes=size_bytes, error=str(error), retry_s=RETRY_S)
                await asyncio.sleep(RETRY_S)
                if invocation.cancelled:
                    return Ended(reason="cancelled", detail="cancelled while its result waited for room")
            else:
                if invocation.cancelled and not invocation.stored:  # its caller has gone, and nobody fetches it
                    await self._payloads.let_go(name_in(name) or "")
                    return Ended(reason="cancelled", detail="cancelled while its result was stored")
                return Ended(content_type=content_type, object=name, object_bytes=size_bytes)

    def _kept_s(self, invocation: Invocation) -> float:
        """As long as what names it: the outcome, the answer, the event that the result is for others."""
        kept_s = self._outcome_retention_s if invocation.stored else ANSWER_KEPT_S
        return (max(kept_s, EVENTS_AGE_S) if invocation.function.spec.output.publish else kept_s) + PAYLOADS_BEFORE_S * invocation.stored


def _lost(error: PayloadLost) -> Ended:
    """The event says where its payload is, and it is not there: no node will ever find it."""
    return Ended(reason="event_invalid", detail=f"dataref: {error}")


def _unavailable(error: BusUnavailable, invocation: Invocation) -> Ended:
    """An event that is stored comes again; of any other this is the end."""
    if invocation.stored:
        raise error
    return Ended(reason="error", detail=f"the payload could not be fetched: {error}")
