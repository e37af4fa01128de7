"""An outcome as the answer to a request: its status, the headers that go out, and its body, from memory or from the bucket. Knows no route.

CloudEvents 1.0 over HTTP: an outcome is an event in binary mode, `ce-*` headers around the handler's result, and in
structured mode where its receiver asks for that.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from contextlib import aclosing, suppress
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from faas.bus.connection import Bus, Message
from faas.bus.outcomes import STATUS_OF_REASON
from faas.bus.payloads import OnBus
from faas.envelope import STRUCTURED, Reply
from faas.errors import FaasError
from faas.gateway.incoming import wants_structured
from faas.gateway.problems import RETRY_AFTER_S, SERVER, Refusal
from faas.objects import Objects, name_in

STRUCTURED_JSON = f"{STRUCTURED}+json"
SENT_AT_ONCE = 16
"""Large results on their way out; each holds some 4 MiB."""
_KEPT_BACK = {"faas-usage", "faas-object", "ce-datacontenttype", "ce-dataref"}
"""What an outcome has and a response has not: more than clients take in a header, names of what is fetched here, and `Content-Type` by another name."""


class Answer(Reply):
    """An outcome, or the reply to a synchronous call, as what a response is made of."""

    __slots__ = ()

    @classmethod
    def of(cls, message: Message) -> Answer:
        return cls(message.headers or {}, message.data)

    @property
    def invocation(self) -> str:
        return self.headers.get("Faas-Invocation", "")

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")

    @property
    def object(self) -> str:
        """The name of the object that is the body; "" where `body` is."""
        return "" if self.body else name_in(self.headers.get("Faas-Object", "")) or ""

    @property
    def status(self) -> int:
        return 200 if self.outcome == "succeeded" else STATUS_OF_REASON.get(self.reason, 500)

    def headers_out(self) -> dict[str, str]:
        """What of its headers a response has."""
        again = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}
        kept = {
            name: _plain(value)
            for name, value in self.headers.items()
            if name.lower().startswith(("faas-", "ce-", "trace", "content-type")) and name.lower() not in _KEPT_BACK
        }
        return {**again, **kept, "X-Content-Type-Options": "nosniff"}


class Answering:
    """Writes outcomes as responses."""

    def __init__(self, bus: Bus) -> None:
        self._objects = Objects(OnBus(bus))
        self._sending = asyncio.Semaphore(SENT_AT_ONCE)

    async def respond(
        self, request: web.BaseRequest, answer: Answer, *, headers: Mapping[str, str] | None = None, read_once: bool = False
    ) -> web.StreamResponse:
        """The response that an outcome is; with `read_once` a large result leaves the bucket, whether its client took it or went. Raises PayloadLost, BusUnavailable."""
        out = {**answer.headers_out(), **(headers or {})}
        if answer.object:
            try:
                return await self._stream(request, answer, out)
            finally:
                if read_once:
                    await self.let_go(answer)
        if answer.outcome == "succeeded" and wants_structured(request):
            plain = {name: value for name, value in out.items() if not name.lower().startswith(("ce-", "content-type"))}
            return web.Response(status=answer.status, body=structured(answer), headers={**plain, "Content-Type": STRUCTURED_JSON})
        response = web.Response(status=answer.status, body=answer.body, headers=out)
        if not answer.content_type:
            response.headers["Content-Type"] = "application/octet-stream"
        return response

    async def let_go(self, answer: Answer) -> None:
        """Nobody will read a large result again; where that cannot be said now, its time ends soon all the same."""
        if answer.object:
            with suppress(FaasError):
                await self._objects.remove(await self._objects.find(answer.object))

    async def _stream(self, request: web.BaseRequest, answer: Answer, headers: Mapping[str, str]) -> web.StreamResponse:
        """A result from the bucket, some chunks at a time; what its digest does not confirm ends without its last bytes, so nobody takes it for whole."""
        info = await self._objects.find(answer.object)
        response = web.StreamResponse(
            status=answer.status, headers={"Content-Type": "application/octet-stream", "Server": SERVER, **headers}
        )
        response.content_length = info.size
        if request.method == "HEAD":  # aiohttp keeps the body of a whole response back, and not what is written
            await response.prepare(request)
            return response
        async with self._sending, aclosing(self._objects.read(info)) as parts:
            held: list[bytes] = []
            async for chunks in parts:
                if not response.prepared:
                    await response.prepare(request)
                for chunk in held:
                    await response.write(chunk)
                held = chunks
        if not response.prepared:
            await response.prepare(request)
        for chunk in held:
            await response.write(chunk)
        return response


def structured(answer: Answer) -> bytes:
    """An outcome whose body is in memory as a CloudEvent in JSON format."""
    attributes = {name[3:].lower(): unquote(value) for name, value in answer.headers.items() if name.lower().startswith("ce-") and value}
    kind = answer.content_type or attributes.pop("datacontenttype", "")
    document: dict[str, object] = {**attributes, **({"datacontenttype": kind} if kind else {})}
    return msgspec.json.encode(document | as_json(answer.body, kind, key="data"))


def as_json(body: bytes, content_type: str, *, key: str) -> dict[str, object]:
    """A body as a member of a JSON document: as `key` where it is JSON or text, else as `<key>_base64`. Nothing where it is empty."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return {}
    if kind == "application/json" or kind.endswith("+json"):
        with suppress(msgspec.DecodeError, RecursionError):
            msgspec.json.decode(body)
            return {key: msgspec.Raw(body)}
    elif kind.startswith("text/"):
        with suppress(UnicodeDecodeError):
            return {key: body.decode()}
    return {f"{key}_base64": base64.b64encode(body).decode()}


def refusal_of(message: Message) -> Refusal | None:
    """Why a reply is no outcome: a node that takes no more, or that failed to answer."""
    headers = message.headers or {}
    if "Faas-Outcome" in headers:
        return None
    if headers.get("Nats-Service-Error-Code") == "503":
        return Refusal(503, "no_capacity", "no node takes more at this moment; ask again")
    if headers.get("Nats-Service-Error-Code") == "502":  # gateway/calls.py
        return Refusal(502, "fate_unknown", headers.get("Nats-Service-Error", ""))
    return Refusal(502, "error", headers.get("Nats-Service-Error", "the answer is no outcome; the nodes' logs say why")[:300])


def _plain(value: str) -> str:
    return value if value.isascii() and value.isprintable() else quote(value, safe="")
