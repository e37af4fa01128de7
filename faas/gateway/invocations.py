"""`/invocations/<id>`: the state of an invocation and its result, its cancel, and its events as they come. Reads what the bus holds; keeps nothing."""

from __future__ import annotations

import msgspec
from aiohttp import web

from faas.errors import NoSuchInvocation
from faas.gateway.answers import Answer, Answering, as_json
from faas.gateway.asking import Asking, Place, StateDocument, invocation_in
from faas.gateway.incoming import accepted, wants_structured
from faas.gateway.problems import Refusal
from faas.gateway.routes import Call, Route
from faas.gateway.stream import Streams


class Invocations:
    """The routes."""

    def __init__(self, *, asking: Asking, answering: Answering, streams: Streams) -> None:
        self._asking, self._answering, self._streams = asking, answering, streams

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/invocations/{id}", self.state, scope="read"),
            Route("DELETE", "/invocations/{id}", self.cancel, scope="invoke"),
            Route("GET", "/invocations/{id}/events", self.events, scope="read"),
        ]

    async def state(self, call: Call) -> web.StreamResponse:
        """The state as JSON, with the result; the result alone for whoever accepts its type and no JSON."""
        place = await self._place(call)
        answer = place.answer
        if answer is not None and answer.outcome == "succeeded" and _wants_result(call.request):
            return await self._answering.respond(call.request, answer)
        headers = {} if answer is None else {k: v for k, v in answer.headers_out().items() if k.lower().startswith(("faas-", "trace"))}
        return web.Response(body=state_body(place.document, answer), headers={**headers, "Content-Type": "application/json"})

    async def cancel(self, call: Call) -> web.StreamResponse:
        """End it as cancelled, wherever it is."""
        place = await self._place(call)
        document = place.document
        if document.state != "ended":
            answer = await self._asking.cancel(place)
            if answer.cancelled:
                return web.Response(
                    body=msgspec.json.encode({"invocation": document.invocation, "cancelled": True}),
                    headers={"Content-Type": "application/json"},
                )
            if not answer.known:
                raise NoSuchInvocation(f"no invocation {document.invocation} waits or runs")
            document = msgspec.structs.replace(document, outcome=answer.outcome)
        raise Refusal(409, "already_ended", f"{document.invocation} has ended already: {document.outcome}")

    async def events(self, call: Call) -> web.StreamResponse:
        """Its state, progress and items as server-sent events, until it has ended."""
        if call.request.method == "HEAD":
            raise Refusal(405, "method_not_allowed", "a stream of events has no head of its own", headers={"Allow": "GET"})
        return await self._streams.follow(call.request, await self._place(call))

    async def _place(self, call: Call) -> Place:
        invocation = call.names["id"]
        if not invocation_in(invocation.encode("ascii", "replace")):
            raise Refusal(404, "unknown_invocation", f"{invocation[:80]!r} is no invocation; it has 26 letters and digits")
        return await self._asking.place(call.principal.tenant, invocation)


def state_body(document: StateDocument, answer: Answer | None) -> bytes:
    """The state document with the result, or with what went wrong, where it has ended."""
    whole: dict[str, object] = msgspec.to_builtins(document)
    if answer is not None and answer.object:
        whole["result_elsewhere"] = f"it is above what one message carries; ask again with Accept: {answer.content_type or '*'}"
    elif answer is not None:
        key = "result" if answer.outcome == "succeeded" else "problem"
        whole |= as_json(answer.body, answer.content_type, key=key)
    return msgspec.json.encode(whole)


def _wants_result(request: web.BaseRequest) -> bool:
    """Whether the result itself is wanted: `Accept` names types, and no JSON before them."""
    kinds = accepted(request)
    return wants_structured(request) or (bool(kinds) and kinds[0] not in ("*/*", "application/*", "application/json"))
