"""Idempotency keys: what comes with one is stored once, as an event that every node may run, and whoever repeats it finds the first outcome.

The key is claimed in FAAS_OUTCOMES before its event is stored, so that a repetition with another payload is refused from the first moment
on, and one that comes when the stream has forgotten the event's `Nats-Msg-Id` stores no second. Knows no caller and runs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from msgspec import Struct

from faas import subjects
from faas.bus import streams
from faas.bus.connection import Bus, NoStream, encode_head
from faas.bus.declared import DEDUP_S
from faas.bus.outcomes import PAYLOAD_DIGEST, Outcomes, StoredAttempts, StoredOutcome, event_id_header
from faas.bus.payloads import Payloads
from faas.bus.reading import holds_another
from faas.bus.schedules import event_head
from faas.errors import AlreadyStored, BusUnavailable, KeyReused, StoreRefused
from faas.identity import keyed_invocation_id, payload_digest
from faas.model import Control, Event
from faas.objects import READ_ONCE

CLAIM_S = DEDUP_S / 2
"""So long after a claim its event is stored again without a question: had it been stored, the stream would drop the second."""

IsOpen = Callable[[str, str, str], Awaitable[bool]]
"""(tenant, function, invocation) -> whether a node holds it, or its event waits in a stream."""


class Keyed(Struct, frozen=True, kw_only=True):
    """What came with a key. `dataref` is the object that is its payload, "" where it has the payload itself."""

    tenant: str
    function: str
    key: str
    payload_digest: str
    dataref: str = ""

    @classmethod
    def of(cls, tenant: str, function: str, event: Event, *, control: Control) -> Keyed:
        """What an event with a key is for a function."""
        return cls(tenant=tenant, function=function, key=control.key, payload_digest=payload_digest(event), dataref=event.dataref)

    @property
    def invocation(self) -> str:
        return keyed_invocation_id(self.tenant, self.function, self.key)

    def compare(self, digest: str) -> None:
        """With what came with the key first; whoever cancelled that may have left no digest. Raises KeyReused."""
        if digest and digest != self.payload_digest:
            raise KeyReused(f"the idempotency key {self.key[:80]!r} came with another payload before; a new request needs a new key")


class Accepted(Struct, frozen=True, kw_only=True):
    """It is stored. `repeated`: it was before; `outcome` is the first one's, where that has ended."""

    repeated: bool
    outcome: StoredOutcome | None = None


class Keys:
    """One for a node; whoever knows what waits and runs sets `is_open`. Every method may run many times at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._outcomes, self._payloads = bus, Outcomes(bus), Payloads(bus)
        self.is_open: IsOpen = _unknown
        self._taken: set[str] = set()  # subjects that a stream takes, as far as is known: not more than there are functions

    async def accept(self, keyed: Keyed, body: bytes, headers: Mapping[str, str] | None) -> Accepted:
        """Have it run once: stored when this returns, whoever repeats it on whichever node. `headers` are the event's own, the key among them.

        Raises KeyReused, NoStream where no function takes it, StoreRefused, MessageTooLarge, BusUnavailable.
        """
        try:
            accepted = await self._accept(keyed, body, headers)
        except (KeyReused, NoStream, StoreRefused):  # any other error leaves open whether it was stored, and then its payload is needed
            await self._let_go(keyed)
            raise
        if accepted.repeated:
            await self._let_go(keyed)
        return accepted

    async def _let_go(self, keyed: Keyed) -> None:
        """Its payload, where that is an object of its own: what was stored has another, and nobody will ask for this one."""
        if keyed.dataref.startswith(READ_ONCE):
            await self._payloads.let_go(keyed.dataref)

    async def _accept(self, keyed: Keyed, body: bytes, headers: Mapping[str, str] | None) -> Accepted:
        key = (keyed.tenant, keyed.function, keyed.invocation)
        outcome, attempts = await asyncio.gather(self._outcomes.find(*key, leader=True), self._outcomes.attempts(*key, leader=True))
        if outcome is None and not attempts.sequence:
            await self._check(subjects.submit(keyed.tenant, keyed.function))
            try:
                await self._claim(keyed)
            except AlreadyStored:  # in this moment, by another
                attempts = await self._outcomes.attempts(*key, leader=True)
        keyed.compare((outcome or attempts).payload_digest)
        if outcome is not None:
            return Accepted(repeated=True, outcome=outcome)
        if attempts.records or (not self._fresh(attempts) and await self.is_open(*key)):
            return Accepted(repeated=True)
        return Accepted(repeated=await self._store(keyed, body, headers))

    async def _check(self, subject: str) -> None:
        """Whether anything takes it: a claim would stay for a day, and whoever makes up names could fill FAAS_OUTCOMES with them. Raises NoStream."""
        if subject not in self._taken:
            if await streams.stream_capturing(self._bus, subject) is None:
                raise NoStream(f"{subject}: no function takes it")
            self._taken.add(subject)

    def _fresh(self, claim: StoredAttempts) -> bool:
        """Whether its event may be stored again without a question. A claim of this moment has no time yet."""
        return not claim.claimed_at or self._bus.now() - _moment(claim.claimed_at) < CLAIM_S

    async def _claim(self, keyed: Keyed) -> None:
        lines = [
            ("Faas-Invocation", keyed.invocation),
            ("Faas-Tenant", keyed.tenant),
            ("Faas-Function", keyed.function),
            ("Faas-Attempt", "0"),
            ("Faas-Event-Id", event_id_header(keyed.key)),
            ("Faas-First-Seen", datetime.fromtimestamp(self._bus.now(), UTC).isoformat()),
            (PAYLOAD_DIGEST, keyed.payload_digest),
            ("Nats-Expected-Last-Subject-Sequence", "0"),
        ]
        await self._bus.store(subjects.attempt(keyed.tenant, keyed.function, keyed.invocation), b"[]", head=encode_head(lines))

    async def _store(self, keyed: Keyed, body: bytes, headers: Mapping[str, str] | None) -> bool:
        """Store the event; whether the stream had it."""
        subject, head = subjects.submit(keyed.tenant, keyed.function), encode_head(event_head(headers))
        try:
            stored = await self._bus.store(subject, body, head=head + encode_head([("Nats-Msg-Id", f"key.{keyed.invocation}")]))
        except NoStream:
            self._taken.discard(subject)
            raise
        if stored.duplicate and await holds_another(self._bus, stored, subject):
            await self._bus.store(subject, body, head=head)  # if it was stored all the same, its second delivery finds what the first left
            return False
        return stored.duplicate


async def _unknown(tenant: str, function: str, invocation: str) -> bool:
    return False


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise BusUnavailable(f"a claim of a key says {text[:40]!r}, which is no moment") from error
