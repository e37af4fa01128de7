"""`POST /hooks/<tenant>/<webhook>`: a sender's request, verified against its raw body, onto `faas.hook.<tenant>.<webhook>`; its 202 says it is stored.

Nobody reads a body before its signature is right. What is delivered twice is one event: its id is the delivery's, by which the stream knows
it within the dedup window, and the outcomes after that. Knows no function but by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Protocol
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import web

from faas import subjects
from faas.bus.connection import Stored
from faas.config import HttpConfig
from faas.errors import FaasError, SecretMissing
from faas.gateway import senders
from faas.gateway.bodies import Room, body_of
from faas.gateway.problems import Refusal
from faas.gateway.publishing import EventStore
from faas.gateway.routes import Call, Route
from faas.gateway.senders import Delivery, Malformed
from faas.gateway.server import from_here, own_machine
from faas.identity import invocation_id
from faas.registry.hooks import Hook, Hooks
from faas.security.secrets import Secret
from faas.security.signatures import Request, SecretUnusable, problem_with, verify
from faas.tally import Tally

log = structlog.get_logger()

LARGE_BYTES = 2**18
"""To verify and to read a larger body takes above a millisecond, which no other request waits for."""
HELD_BYTES = 128 * 2**20
"""Of bodies that are not verified yet, or on their way to the bus: a signature is over the whole of one, so any stranger can have it held."""
TRACEPARENT_CHARACTERS = 55
TRACESTATE_CHARACTERS = 512


class Secrets(Protocol):
    """What is asked of whoever has the secrets."""

    def get(self, name: str, tenant: str) -> Secret:
        """As it stands now. Raises SecretMissing."""


class Webhooks:
    """The webhooks of what a node serves. Without `tenants` it serves its own machine alone. `clock` is the node's own, in seconds since the epoch: signed times are held against it."""

    def __init__(
        self,
        store: EventStore,
        secrets: Secrets,
        config: HttpConfig,
        *,
        tenants: bool,
        tally: Tally,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._secrets, self._config, self._tenants, self._tally, self._clock = store, secrets, config, tenants, tally, clock
        self._hooks: Hooks = {}
        self._room = Room(HELD_BYTES)
        self._closed: dict[tuple[str, str], str] = {}  # why nobody gets in, as it was said in the log

    @property
    def routes(self) -> list[Route]:
        """Open to anybody without a token: who sends is what the signature says."""
        return [Route("POST", "/hooks/{tenant}/{webhook}", self._receive, scope="")]

    def serve(self, hooks: Hooks) -> None:
        """Take these from now on, and no others. Whatever an administrator should know of a new one is said once."""
        before, self._hooks = self._hooks, hooks
        for at, hook in hooks.items():
            if before.get(at) != hook:
                self._closed.pop(at, None)
                if worry := worry_about(hook, self._secrets):
                    log.warning("webhook.doubtful", tenant=hook.tenant, webhook=hook.name, functions=hook.functions, why=worry)

    async def _receive(self, call: Call) -> web.StreamResponse:
        hook = self._hooks.get((call.name("tenant"), call.name("webhook")))
        if hook is None:
            raise Refusal(404, "unknown_webhook", f"no function of the tenant {call.name('tenant')} has a webhook {call.name('webhook')}")
        try:
            answer, said = await self._answer(hook, call.request)
        except FaasError as error:
            self._tally.delivery(hook.tenant, hook.name, error.code)
            raise
        self._tally.delivery(hook.tenant, hook.name, said)
        return answer

    async def _answer(self, hook: Hook, request: web.BaseRequest) -> tuple[web.Response, str]:
        """What its sender is told, and what that is in a word."""
        if not self._tenants:  # what carries a signature may have come through a tunnel; what carries none may be any page in a browser
            (own_machine if hook.verify == "none" else from_here)(request)
        headers = _headers(request)
        _check_type(hook, headers.get("content-type", ""))
        limit_bytes = min(int(self._config.max_body_bytes), hook.payload_bytes)
        async with body_of(request, self._room, limit_bytes=limit_bytes, timeout_s=self._config.body_timeout_s) as body:
            read = partial(self._read, hook, Request(headers, body, self._clock()))
            delivery = await asyncio.to_thread(read) if len(body) > LARGE_BYTES else read()
            if delivery.answer is not None:
                return _plainly(delivery.answer.body, delivery.answer.content_type), "answered"
            stored = await self._publish(hook, delivery, trace=_trace(headers))
        return self._accepted(hook, delivery), "repeated" if stored.duplicate else "accepted"

    def _read(self, hook: Hook, request: Request) -> Delivery:
        """What is delivered, once its sender is known. Raises Refusal."""
        self._check_sender(hook, request)
        try:
            return senders.read(hook.verify, request.headers, request.body)
        except Malformed as error:
            raise Refusal(400, "event_invalid", str(error)) from None

    def _check_sender(self, hook: Hook, request: Request) -> None:
        """Raises Refusal: 401 where its sender does not know the secret, or sent it long ago; 503 where we do not know it."""
        try:
            known = () if hook.verify == "none" else self._secrets.get(hook.secret, hook.tenant).values
            problem = verify(hook.verify, request, known)
        except (SecretMissing, SecretUnusable) as error:
            self._say_closed(hook, str(error))
            raise Refusal(503, "secret_missing", "this node does not have the secret of the webhook; its log says more") from None
        if problem:
            scheme = "Bearer" if hook.verify == "token" else f"Webhook scheme={hook.verify}"
            raise Refusal(401, "signature_invalid", problem, headers={"WWW-Authenticate": scheme})

    def _say_closed(self, hook: Hook, why: str) -> None:
        at = (hook.tenant, hook.name)
        if self._closed.get(at) != why:
            self._closed[at] = why
            log.error("webhook.closed", tenant=hook.tenant, webhook=hook.name, secret=hook.secret, why=why)

    async def _publish(self, hook: Hook, delivery: Delivery, *, trace: Mapping[str, str]) -> Stored:
        return await self._store.store(
            subjects.hook(hook.tenant, hook.name),
            delivery.data,
            {
                "id": delivery.id,
                "source": _source(hook),
                "type": delivery.type,
                "subject": delivery.subject,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                **trace,
            },
            message_id=f"wh:{hook.tenant}:{hook.name}:{quote(delivery.id, safe='')}",
            content_type=delivery.content_type,
            once=len(hook.functions) == 1,
        )

    def _accepted(self, hook: Hook, delivery: Delivery) -> web.Response:
        """Which invocations come of it: the same ids each time that it is delivered."""
        found = [invocation_id(hook.tenant, function, source=_source(hook), event_id=delivery.id) for function in hook.functions]
        body = msgspec.json.encode({"event": delivery.id, "invocations": found})
        return web.Response(status=202, body=body, headers={"Content-Type": "application/json"})


def _source(hook: Hook) -> str:
    return f"/hooks/{hook.tenant}/{hook.name}"


def worry_about(hook: Hook, secrets: Secrets) -> str:
    """What an administrator should know of a webhook, in one sentence; "" where there is nothing."""
    if hook.verify == "none":
        return 'verify = "none": whoever reaches this node may send to it'
    try:
        found = [problem_with(hook.verify, value) for value in secrets.get(hook.secret, hook.tenant).values]
    except SecretMissing as error:
        return f"nobody can send to it: {error}"
    weak = next((problem for problem in found if problem), "")
    return f"the secret {hook.secret} {weak}" if weak else ""


def _check_type(hook: Hook, content_type: str) -> None:
    accepted = senders.ACCEPTED.get(hook.verify)
    if accepted is not None and senders.media_type(content_type) not in accepted:
        raise Refusal(415, "unsupported_type", f"{content_type[:80]!r} is not taken here; send {' or '.join(accepted)}")


def _headers(request: web.BaseRequest) -> dict[str, str]:
    """With names in lower case; of one that comes twice, the first."""
    raw = reversed(request.raw_headers)
    return {name.decode("ascii", "replace").lower(): value.decode("utf-8", "surrogateescape") for name, value in raw}


def _trace(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace that the sender is in, as far as it may be one; whoever decodes the event looks closer."""
    if len(headers.get("traceparent", "")) != TRACEPARENT_CHARACTERS:
        return {}
    return {name: headers[name] for name in ("traceparent", "tracestate") if len(headers.get(name, "")) in range(1, TRACESTATE_CHARACTERS)}


def _plainly(body: str, content_type: str) -> web.Response:
    return web.Response(text=body, content_type=content_type, headers={"X-Content-Type-Options": "nosniff"})
