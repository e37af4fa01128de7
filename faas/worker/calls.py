"""From what a handler returned to one body: awaits a coroutine, exhausts a generator of either kind and sends on each item as it comes.

Owns the worker's event loop, made when something first needs one, and what a signal does to what runs. Knows no socket.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import FrameType
from typing import Any

import msgspec

from faas.worker import wire
from faas.worker.loader import encode

OnChunk = Callable[[bytes, str], None]
JSON = "application/json"
TEXT = "text/plain"


class Unencodable(Exception):
    """What the handler returned, or one of its items, is nothing that can be sent."""


class TooLarge(Exception):
    """The result is above what may be sent."""


class Calls:
    """Brings what handlers return to its end, one at a time."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def listen(self) -> None:
        """From now on SIGTERM asks what runs to stop: `ctx.cancelled` in a blocking handler, CancelledError in an async one."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = True
        if self._task is not None and self._runner is not None:
            self._runner.get_loop().call_soon_threadsafe(self._task.cancel)

    def is_cancelled(self) -> bool:
        """Whether what runs was asked to stop."""
        return self._cancelled

    def renew(self) -> None:
        """Another attempt: nobody has asked it to stop."""
        self._cancelled = False

    def finish(self, returned: Any, *, limit_bytes: int, on_chunk: OnChunk | None) -> tuple[bytes, str]:
        """(body, content type). Raises Unencodable, TooLarge, and whatever the author's code raises."""
        if inspect.isawaitable(returned):
            returned = self.run(_awaited(returned))
        items = _Items(limit_bytes, on_chunk)
        if inspect.isgenerator(returned):
            return items.all_of(returned)
        if inspect.isasyncgen(returned):
            whole: tuple[bytes, str] = self.run(items.all_of_async(returned))
            return whole
        body, content_type = _encoded(returned)
        if len(body) > limit_bytes:
            raise TooLarge(f"the result has {len(body)} bytes; {limit_bytes} are the most that limits.payload allows")
        if on_chunk is not None and len(body) <= wire.CHUNK_LIMIT_BYTES:
            on_chunk(body, content_type)  # a stream of one, so that whoever listens need not know what kind of handler it is
        return body, content_type

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, on the one loop of this worker: what a handler opened in one attempt is there in the next."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(self._tracked(work))
        finally:
            self._task = None

    async def _tracked(self, work: Coroutine[Any, Any, Any]) -> Any:
        self._task = asyncio.current_task()
        return await work

    def close(self) -> None:
        """End what still runs on the loop."""
        if self._runner is not None:
            self._runner.close()


async def _awaited(thing: Any) -> Any:
    return await thing


class _Items:
    """The items of one generator, each sent on where somebody listens, all kept for the outcome."""

    def __init__(self, limit_bytes: int, on_chunk: OnChunk | None) -> None:
        self._limit_bytes, self._on_chunk = limit_bytes, on_chunk
        self._items: list[tuple[bytes, str]] = []
        self._size_bytes = 2

    def all_of(self, generator: Generator[Any, Any, Any]) -> tuple[bytes, str]:
        try:
            for item in generator:
                self._add(item)
        finally:
            generator.close()
        return self._whole()

    async def all_of_async(self, generator: AsyncGenerator[Any, Any]) -> tuple[bytes, str]:
        try:
            async for item in generator:
                self._add(item)
        finally:
            await generator.aclose()
        return self._whole()

    def _add(self, item: Any) -> None:
        body, content_type = _encoded(item, text=TEXT)
        self._size_bytes += len(body) + 1
        if self._size_bytes > self._limit_bytes:
            raise TooLarge(f"the items have more than {self._limit_bytes} bytes together, the most that limits.payload allows")
        if self._on_chunk is not None:
            if len(body) > wire.CHUNK_LIMIT_BYTES:
                raise TooLarge(f"an item has {len(body)} bytes; {wire.CHUNK_LIMIT_BYTES} at most can be streamed")
            self._on_chunk(body, content_type)
        self._items.append((body, content_type))

    def _whole(self) -> tuple[bytes, str]:
        """Joined where all are text, or bytes of one kind; else a JSON array."""
        kinds = {content_type for _, content_type in self._items}
        if len(kinds) == 1 and JSON not in kinds:
            return b"".join(body for body, _ in self._items), kinds.pop()
        body = b"[" + b",".join(_as_json(body, kind) for body, kind in self._items) + b"]"
        if len(body) > self._limit_bytes:
            raise TooLarge(f"the items have {len(body)} bytes together; {self._limit_bytes} are the most that limits.payload allows")
        return body, JSON


def _as_json(body: bytes, content_type: str) -> bytes:
    if content_type == JSON:
        return body
    return msgspec.json.encode(body.decode("utf-8", "replace") if content_type == TEXT else body)


def _encoded(result: Any, *, text: str = "") -> tuple[bytes, str]:
    """`text` is the content type that a str goes as it is with; "": as JSON, like everything else."""
    try:
        return (result.encode(), text) if text and isinstance(result, str) else encode(result)
    except Exception as error:  # whatever an author's type raises while it is encoded
        raise Unencodable(f"{type(error).__name__}: {error}") from error
