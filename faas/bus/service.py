"""The NATS micro service `faas`: its endpoints are the functions, so that any NATS client can list and call them (ADR-32).

Our own, since nats-py's service handles the requests of an endpoint one after another, and cannot take an endpoint away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import msgspec
import structlog
from msgspec import Struct

from faas import subjects
from faas.bus.connection import Bus, Callback, Message, Subscription
from faas.errors import FaasError

log = structlog.get_logger()

QUEUE = "q"
_PREFIX = "io.nats.micro.v1"


class _Named(Struct, frozen=True, kw_only=True, omit_defaults=False):
    type: str
    name: str = subjects.SERVICE
    id: str
    version: str
    metadata: dict[str, str]


class _EndpointInfo(Struct, frozen=True, kw_only=True):
    name: str
    subject: str
    queue_group: str = QUEUE
    metadata: dict[str, str] = {}


class _Info(_Named, frozen=True, kw_only=True):
    description: str
    endpoints: list[_EndpointInfo]


class _EndpointStats(Struct, frozen=True, kw_only=True):
    name: str
    subject: str
    queue_group: str = QUEUE
    num_requests: int
    num_errors: int
    last_error: str
    processing_time: int  # nanoseconds
    average_processing_time: int
    data: None = None  # optional in ADR-32; nats-py's own reader wants the key


class _Stats(_Named, frozen=True, kw_only=True):
    started: str
    endpoints: list[_EndpointStats]


@dataclass(slots=True)
class Endpoint:
    """One function's endpoint and what it has answered."""

    name: str
    subject: str
    subscription: Subscription
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0

    def finished(self, processing_ns: int, error: str = "") -> None:
        """Count one answered request; `error` is "" where it was a success."""
        self.requests += 1
        self.processing_ns += processing_ns
        if error:
            self.errors += 1
            self.last_error = error


class Service:
    """This node's instance of the service. `open` it, add endpoints, `stop` it before the node drains."""

    def __init__(self, bus: Bus, *, node: str, version: str, group: asyncio.TaskGroup) -> None:
        self._bus, self._id, self._version, self._group = bus, node, version, group
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._endpoints: dict[str, Endpoint] = {}  # by subject: two names may be one text
        self._verbs: list[Subscription] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, *, node: str, version: str) -> AsyncIterator[Service]:
        """Answer PING, INFO and STATS for all, for the service's name, and for this instance alone."""
        async with asyncio.TaskGroup() as group:
            service = cls(bus, node=node, version=version, group=group)
            for verb, answer in (("PING", service._ping), ("INFO", service._info), ("STATS", service._stats)):
                for suffix in ("", f".{subjects.SERVICE}", f".{subjects.SERVICE}.{node}"):
                    service._verbs.append(await bus.subscribe(f"$SRV.{verb}{suffix}", partial(service._reply, answer)))
            try:
                yield service
            finally:
                await service.stop()

    async def add_endpoint(self, name: str, subject: str, callback: Callback) -> Endpoint:
        """Take a function's requests from now on; the callback starts each and returns at once, so that they run side by side."""
        endpoint = Endpoint(name, subject, await self._bus.subscribe(subject, callback, queue=QUEUE))
        self._endpoints[subject] = endpoint
        return endpoint

    async def remove_endpoint(self, subject: str) -> None:
        """Take no more requests on this subject; those that have come in are still handed to its callback."""
        endpoint = self._endpoints.pop(subject, None)
        if endpoint is not None:
            await endpoint.subscription.unsubscribe()

    async def stop(self) -> None:
        """Be found no longer, and take no more requests."""
        while self._verbs:
            await self._verbs.pop().unsubscribe()
        for subject in list(self._endpoints):
            await self.remove_endpoint(subject)

    def _reply(self, answer: Callable[[], Struct], message: Message) -> None:
        if message.reply:
            self._group.create_task(self._send(message.reply, msgspec.json.encode(answer())))

    async def _send(self, reply: str, body: bytes) -> None:
        try:
            await self._bus.answer(reply, body)
        except FaasError as error:
            log.warning("service.not_answered", error=str(error))

    def _ping(self) -> Struct:
        return _Named(type=f"{_PREFIX}.ping_response", id=self._id, version=self._version, metadata=self._metadata)

    def _info(self) -> Struct:
        return _Info(
            type=f"{_PREFIX}.info_response",
            id=self._id,
            version=self._version,
            metadata=self._metadata,
            description="functions that this node runs",
            endpoints=[_EndpointInfo(name=endpoint.name, subject=endpoint.subject) for endpoint in self._endpoints.values()],
        )

    def _stats(self) -> Struct:
        return _Stats(
            type=f"{_PREFIX}.stats_response",
            id=self._id,
            version=self._version,
            metadata=self._metadata,
            started=self._started,
            endpoints=[
                _EndpointStats(
                    name=endpoint.name,
                    subject=endpoint.subject,
                    num_requests=endpoint.requests,
                    num_errors=endpoint.errors,
                    last_error=endpoint.last_error,
                    processing_time=endpoint.processing_ns,
                    average_processing_time=endpoint.processing_ns // max(1, endpoint.requests),
                )
                for endpoint in self._endpoints.values()
            ],
        )

    @property
    def _metadata(self) -> dict[str, str]:
        return {"node": self._id}
