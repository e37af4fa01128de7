"""Server-sent events of an invocation: `state`, `progress`, `chunk`, each with an id from which a reader that comes back goes on. Knows no bus.

An id is `<attempt>.<item>-<place in FAAS_LOGS>`: progress is read from the stream behind that place, and items behind that
number from a tape, as far as it reaches.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from faas.bus.connection import Message
from faas.gateway.answers import Answer, as_json
from faas.gateway.asking import StateDocument, number_in
from faas.gateway.problems import SERVER
from faas.runs import LogLine

PING_S = 15.0
"""A comment in between, so that proxies and readers see that the stream lives; the state is looked up anew as often."""
STALLED_S = 30.0
"""A reader that takes nothing for so long is gone."""
RETRY_MS = 2000
_POSITION = re.compile(r"(\d{1,9})\.(\d{1,9})-(\d{1,18})", re.ASCII)


@dataclass(slots=True)
class Events:
    """One response, and how far its reader is. It begins with the first event: until then the answer can still be any other."""

    request: web.BaseRequest
    headers: Mapping[str, str]
    stack: AsyncExitStack
    attempt: int = 0
    item: int = 0
    place: int = 0
    response: EventSourceResponse | None = None
    said: StateDocument | None = None

    @classmethod
    @asynccontextmanager
    async def to(cls, request: web.BaseRequest, headers: Mapping[str, str] | None = None) -> AsyncIterator[Events]:
        async with AsyncExitStack() as stack:
            events = cls(request, headers or {}, stack)
            if match := _POSITION.fullmatch(request.headers.get("Last-Event-ID", "")):
                events.attempt, events.item, events.place = int(match[1]), int(match[2]), int(match[3])
            yield events

    async def begin(self) -> EventSourceResponse:
        if self.response is None:
            self.response = EventSourceResponse(
                headers={"Server": SERVER, **self.headers}, allow_all_methods=True, ping_interval=PING_S, send_timeout=STALLED_S, sep="\n"
            )
            await self.response.prepare(self.request)
            await self.stack.enter_async_context(self.response)
        return self.response

    async def _send(self, event: str, data: bytes) -> None:
        response = await self.begin()
        try:
            await response.send(
                data.decode(), event=event, id=f"{self.attempt}.{self.item}-{self.place}", retry=RETRY_MS if event == "state" else None
            )
        except TimeoutError as error:
            raise ConnectionResetError("the reader takes nothing") from error

    async def state(self, document: StateDocument, answer: Answer | None = None) -> None:
        """Say where it is, where that is new; with its result, or what went wrong, where it has ended."""
        if document == self.said:
            return
        self.said = document
        whole: dict[str, object] = msgspec.to_builtins(document)
        if answer is not None and answer.object:
            whole["result_elsewhere"] = "it is above what one message carries; ask for it without text/event-stream"
        elif answer is not None and answer.outcome != "succeeded":
            whole |= as_json(answer.body, answer.content_type, key="problem")
        elif answer is not None and not self.item:  # else it is the items once more
            whole |= as_json(answer.body, answer.content_type, key="result")
        await self._send("state", msgspec.json.encode(whole))

    async def running(self) -> None:
        """It speaks, so it runs."""
        if self.said is not None and self.said.state == "waiting":
            await self.state(msgspec.structs.replace(self.said, state="running"))

    async def chunk(self, message: Message) -> None:
        """One item, unless the reader has it: JSON as it is, text as a JSON string, anything else as {"base64": ...}."""
        headers = message.headers or {}
        attempt, item = number_in(headers.get("Faas-Attempt", "")), number_in(headers.get("Faas-Seq", ""))
        if "Faas-Eos" in headers or (attempt, item) <= (self.attempt, self.item):
            return
        self.attempt, self.item = attempt, item
        await self.running()
        packed = as_json(message.data, headers.get("Content-Type", ""), key="data")
        value = packed.get("data", {"base64": base64.b64encode(message.data).decode()})
        await self._send("chunk", msgspec.json.encode(value))

    async def progress(self, data: bytes, *, invocation: str, place: int) -> None:
        """The progress that a message of FAAS_LOGS holds; `place` is its sequence, 0 where it was only heard."""
        self.place = max(place, self.place)
        for line in data.splitlines():
            with suppress(msgspec.DecodeError):  # anybody may have written to the stream
                said = msgspec.json.decode(line, type=LogLine)
                if said.stream == "progress" and said.invocation == invocation:
                    await self.running()
                    document = {"fraction": said.fraction, "message": said.message, "attempt": said.attempt, "time": said.time}
                    await self._send("progress", msgspec.json.encode(document))
