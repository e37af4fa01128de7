"""The life of an invocation; the file to read first.

An event comes in as a delivery of JetStream (`handle`), as a synchronous request or as an at-most-once message (`answer`).
The dispatcher decodes it, looks whether it has ended before, has one attempt run (`pool/attempt.py`), and publishes its
end in the order that makes a crash at any point harmless. It knows neither how a worker is made nor how a function is
written, and it executes no user code.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from faas import admission
from faas.accounting.records import UsageRecords
from faas.bus.connection import Message, NoStream
from faas.bus.letters import Letters
from faas.bus.outcomes import NO_ATTEMPTS, Outcomes, StoredAttempts, StoredOutcome, latest_records
from faas.bus.pull import Delivery
from faas.bus.schedules import SCHEDULE_BEYOND_S, Schedules, event_head, message_id_of
from faas.bus.speech import Speech
from faas.ends import log_end, names_of, outcome_of, records_of
from faas.errors import BusUnavailable, StoreRefused
from faas.identity import invocation_id
from faas.invocation import Invocation
from faas.keyed import KeyedCalls
from faas.model import Due, Ended, EventInvalid, FunctionVersion, Outcome, Phases
from faas.pool.attempt import Attempt, Attempts
from faas.pool.lease import Draining
from faas.scheduling import retry
from faas.tally import Tally
from faas.unended import Unended

log = structlog.get_logger()

T = TypeVar("T")

OUTPUT_TRIES = 20
"""So often a result is offered to a stream of somebody else that refuses it, as a full one does; then the outcome goes on without it."""

REDELIVERED_SOON_S = 1.0
"""After so long a delivery comes again whose attempt another node recorded first."""

LAST_START_S = 1.0
"""A back-off is cut so far before the moment after which the invocation is no longer started: its last attempt can then still begin."""

BUS_RETRY_S = 0.25
"""Between two tries to write an end; a try on a bus that is away takes its own timeout first."""


class _Billable(msgspec.Struct):
    billable: bool


class Dispatcher:
    """Turns events into outcomes. One per node; every method may run many times at once."""

    keyed: KeyedCalls  # whoever makes a dispatcher gives it

    def __init__(
        self,
        attempts: Attempts,
        outcomes: Outcomes,
        *,
        letters: Letters,
        schedules: Schedules,
        speech: Speech,
        usage: UsageRecords,
        captured: dict[str, str],
    ) -> None:
        self._attempts, self.tenants = attempts, attempts.tenants
        self._letters, self._schedules, self._speech = letters, schedules, speech
        self._outcomes = outcomes
        self._usage = usage
        self._captured = captured  # [output] subject -> the stream that captures it
        self._draining = False
        self.now: Callable[[], float] = time.time  # seconds since the epoch, by the clock that stamps events
        self.unended = Unended()

    # ------------------------------------------------------------ durable

    async def handle(self, delivery: Delivery, function: FunctionVersion, on_leased: Callable[[], None]) -> None:
        """Take one stored event to its one stored outcome. The acknowledgement is last: until then a crash means redelivery."""
        invocation = admission.of_delivery(delivery, function, now=self.now(), tenants=self.tenants)
        if isinstance(invocation, EventInvalid):
            await self._refuse(delivery, function, invocation)
            return
        invocation.on_leased = on_leased
        await self.unended.alone(invocation)
        try:
            outcome, tried = await self._history(delivery, invocation)
            if outcome is None:
                try:
                    attempt = await self._attempts.run(invocation)
                except Draining:
                    await delivery.nak()
                    return
                if delivery.lost:
                    return  # another node has it by now: whatever this one says comes too late
                if await self._try_again(delivery, invocation, attempt, tried=tried):
                    return
                outcome = await self._settle(delivery, invocation, attempt, tried=tried)
            await self._conclude(delivery, invocation, outcome)
        finally:
            self.unended.remove(invocation)

    async def _history(self, delivery: Delivery, invocation: Invocation) -> tuple[StoredOutcome | None, StoredAttempts]:
        """What is stored of an invocation already. An event whose id is its place in the stream cannot have been seen before its first delivery."""
        tried = NO_ATTEMPTS
        cancelled = self.unended.is_cancelled(invocation.id)
        if (
            delivery.num_delivered == 1
            and not invocation.event.explicit_id
            and not delivery.may_repeat
            and invocation.due is None
            and not cancelled
        ):
            return None, tried
        redelivered = delivery.num_delivered > 1 or invocation.due is not None or cancelled
        key = (invocation.function.spec.tenant, invocation.function.spec.name, invocation.id)
        # Attempts of a first delivery too: its publish may be a repetition, while the first one is in its back-off.
        outcome, tried = await asyncio.gather(
            self._outcomes.find(*key, leader=redelivered), self._outcomes.attempts(*key, leader=redelivered)
        )
        if outcome is None:
            invocation.attempts = len(tried.records)
            invocation.billable_attempts = sum(msgspec.json.decode(record, type=_Billable).billable for record in tried.records)
            policy = invocation.function.spec.retry
            if delivery.num_delivered > policy.max_attempts + retry.DELIVERIES_BEYOND_ATTEMPTS:
                ended = Ended(reason="fate_unknown", detail=f"delivered {delivery.num_delivered} times without an outcome")
                outcome = await self._settle(delivery, invocation, Attempt(ended, Phases()), tried=tried)
        return outcome, tried

    async def _try_again(self, delivery: Delivery, invocation: Invocation, attempt: Attempt, *, tried: StoredAttempts) -> bool:
        """Give the delivery back where another attempt is due: its record is stored first, since a `nak` carries no state."""
        delay_s = 0.0 if attempt.drained else self._delay_s(invocation, attempt)
        if delay_s is not None:  # waited longer than it may be started, it would only expire
            delay_s = min(delay_s, max(0.0, invocation.start_by_monotonic - time.monotonic() - LAST_START_S))
        if delay_s is None or attempt.record is None:
            return False
        records = (*tried.records, attempt.record)
        outcome = outcome_of(invocation, attempt)
        if not await self._outcomes.store_attempts(outcome, records, after=tried.sequence):
            await delivery.nak(REDELIVERED_SOON_S)  # another node was faster: its records hold, this one's is dropped
            return True
        await self._usage.store(*invocation.function.key, *records_of(attempt))
        log.info(
            "attempt.repeated", **names_of(invocation), reason=attempt.ended.reason, attempt=outcome.attempt, delay_s=round(delay_s, 3)
        )
        if delay_s > SCHEDULE_BEYOND_S and await self._schedule(delivery, invocation, outcome.attempt, delay_s=delay_s):
            await delivery.ack_sync()  # lost, it would be tried again at once beside the one that waits
        else:
            await delivery.nak(delay_s)
        return True

    async def _schedule(self, delivery: Delivery, invocation: Invocation, attempt: int, *, delay_s: float) -> bool:
        """Have the invocation come again by a schedule, with what its place in the stream told."""
        was, event, now = invocation.due, invocation.event, self.now()
        due = Due(
            invocation=invocation.id,
            first_seen=was.first_seen if was is not None else delivery.stored_at,
            event_id=event.id,
            source=event.source,
            subject=was.subject if was is not None else delivery.subject,
            message_id=was.message_id if was is not None else message_id_of(delivery.headers),
            redrive_of=was.redrive_of if was is not None else "",
            attempt=attempt,
        )
        head = event_head(delivery.headers)
        return await self._schedules.retry(*invocation.function.key, due, at=now + delay_s, headers=head, body=delivery.data)

    async def _settle(self, delivery: Delivery, invocation: Invocation, attempt: Attempt, *, tried: StoredAttempts) -> StoredOutcome:
        """Publish `[output]`, then the outcome under its guard; where another was stored first, that one holds."""
        records = latest_records(tried.records if attempt.record is None else (*tried.records, attempt.record))
        outcome = self._fitting(outcome_of(invocation, attempt), records)
        if invocation.function.spec.output.publish:
            await self._insist(delivery, lambda: self._emit(invocation, outcome))
        stored = await self._insist(delivery, lambda: self._outcomes.store(outcome, records))
        log_end(invocation, outcome)
        if stored is None:
            found = await self._outcomes.find(outcome.tenant, outcome.function, outcome.invocation_id, leader=True)
            if found is None:
                raise BusUnavailable("an outcome that the guard spoke of is gone")  # its retention ended in this moment: redeliver
            if found.outcome == "cancelled" and attempt.record is not None:
                await self._usage.store(*invocation.function.key, attempt.record)  # whoever cancelled it knew nothing of this attempt
            return found
        self.tally.end(invocation.function.key, outcome.ended.reason)
        # Behind the outcome: a load whose attempt died with its node is done again under the same record id.
        if attempt.load_record is not None:
            await self._usage.store(*invocation.function.key, attempt.load_record)
        return stored

    def _fitting(self, outcome: Outcome, records: tuple[bytes, ...] = ()) -> Outcome:
        """The outcome, or that it is too large to be carried: published as it is it would fail, and run again for ever."""
        if self._outcomes.fits(outcome, records):
            return outcome
        ended = Ended(reason="result_too_large", detail="the result and its headers are more than the bus carries")
        return msgspec.structs.replace(outcome, ended=ended)

    async def _insist(self, delivery: Delivery, act: Callable[[], Awaitable[T]]) -> T:
        """Do it again while the bus is away and the lease holds: a finished result is not run a second time because a server restarts."""
        while True:
            try:
                return await act()
            except BusUnavailable as error:
                if delivery.lost:
                    raise
                log.warning("bus.refused", subject=delivery.subject, error=str(error), retry_s=BUS_RETRY_S)
                await asyncio.sleep(BUS_RETRY_S)

    async def _conclude(self, delivery: Delivery, invocation: Invocation, outcome: StoredOutcome) -> None:
        """All that follows a stored outcome; a redelivery that finds one repeats it: end of stream, reply, dead letter, usage, acknowledgement."""
        if invocation.control.chunk_to:
            await self._end_stream(invocation, outcome.outcome, outcome.reason, attempt=outcome.attempt)
        if invocation.control.reply_to:
            await self._outcomes.forward(invocation.control.reply_to, outcome)
        if outcome.outcome not in ("succeeded", "cancelled") and invocation.function.spec.retry.dead_letter:
            await self._letters.bury(
                delivery,
                invocation.function.key,
                letter_id=invocation.id,
                invocation=invocation,
                outcome=outcome.outcome,
                reason=outcome.reason,
            )
        if outcome.records:
            await self._usage.store(*invocation.function.key, *outcome.records)
        await delivery.ack()
        await self._attempts.forget(invocation, outcome.outcome)

    async def _end_stream(self, invocation: Invocation, outcome: str, reason: str, *, attempt: str) -> None:
        await self._speech.end_stream(invocation.control.chunk_to, items=invocation.items, attempt=attempt, outcome=outcome, reason=reason)

    async def _refuse(self, delivery: Delivery, function: FunctionVersion, invalid: EventInvalid) -> None:
        """An event that cannot be decoded: no invocation, so no outcome; one dead letter, and never again."""
        spec = function.spec
        event_id = f"{delivery.sequence}.{delivery.stored_at_ns}"
        log.warning("event.invalid", tenant=spec.tenant, function=spec.name, subject=delivery.subject, detail=invalid.detail)
        letter = invocation_id(spec.tenant, spec.name, source=delivery.stream, event_id=event_id)
        if spec.retry.dead_letter:
            await self._letters.bury(
                delivery, function.key, letter_id=letter, invocation=None, outcome="rejected", reason="event_invalid", detail=invalid.detail
            )
        await delivery.term(f"event_invalid: {invalid.detail}")

    # ------------------------------------------------------------ synchronous and at-most-once

    async def answer(self, message: Message, function: FunctionVersion, reply_to: str) -> str:
        """Run an event that nothing stores: the answer first, to `reply_to` if somebody waits there, then `[output]` and usage.

        Returns the reason of its end, "" for a success.
        """
        invocation = admission.of_message(message, function, answered=bool(reply_to), now=self.now(), tenants=self.tenants)
        if isinstance(invocation, EventInvalid):
            refused = Attempt(Ended(reason="event_invalid", detail=invocation.detail), Phases())
            return await self._reply(reply_to, admission.without_event(function), refused)
        if invocation.control.key:
            ended = await self.keyed.answer(invocation, message, reply_to)
            if isinstance(ended, str):
                return ended
            return await self._reply(reply_to, admission.without_event(function), Attempt(ended, Phases()))
        self.unended.add(invocation, reply_to)
        try:
            attempt = await self._run_and_try_again(invocation, answered=bool(reply_to))
        finally:
            self.unended.remove(invocation)
        return await self._reply(reply_to, invocation, attempt)

    async def _run_and_try_again(self, invocation: Invocation, *, answered: bool) -> Attempt:
        attempt = await self._attempts.run(invocation)
        # Not once an item has gone out: whoever listens would get the first ones twice.
        while answered and not attempt.drained and not invocation.items and (delay_s := self._delay_s(invocation, attempt)) is not None:
            if time.monotonic() + delay_s >= invocation.start_by_monotonic:
                break
            await _pause(invocation, delay_s)
            if self._draining:
                break  # the end so far is the answer: something was started, so nobody may be told to ask again
            self._usage.add(*invocation.function.key, *records_of(attempt))
            invocation.attempts += 1
            invocation.billable_attempts += 1
            invocation.received_monotonic = time.monotonic()
            try:
                attempt = await self._attempts.run(invocation)
            except Draining:  # as above, while it waited for a worker
                invocation.attempts -= 1
                break
        return attempt

    def drain(self) -> None:
        """Begin no further attempt of a synchronous call that has had one, and wait no more for what other nodes may end."""
        self._draining = True
        self.keyed.drain()

    async def _reply(self, reply_to: str, invocation: Invocation, attempt: Attempt) -> str:
        outcome = self._fitting(outcome_of(invocation, attempt))
        try:
            if invocation.control.chunk_to:
                await self._end_stream(invocation, outcome.ended.outcome, outcome.ended.reason, attempt=str(outcome.attempt))
            if reply_to:
                await self._outcomes.reply(reply_to, outcome)
                await asyncio.sleep(0)  # the answer is on its way before anything else is done
            if invocation.control.reply_to:
                await self._outcomes.reply(invocation.control.reply_to, outcome)
        finally:  # where it cannot be sent it ran all the same
            if attempt.measured:
                self._usage.add(*invocation.function.key, *records_of(attempt))
            if invocation.function.spec.output.publish:
                await self._emit(invocation, outcome)
            self.tally.end(invocation.function.key, outcome.ended.reason)
            await self._attempts.forget(invocation, outcome.ended.outcome)
            log_end(invocation, outcome)
        return outcome.ended.reason

    # ------------------------------------------------------------ both

    def _delay_s(self, invocation: Invocation, attempt: Attempt) -> float | None:
        if not attempt.measured or not attempt.ended.reason:
            return None
        return retry.delay_s(
            invocation.function.spec.retry, attempt.ended, attempts=invocation.billable_attempts + 1, random=random.random()
        )

    @property
    def tally(self) -> Tally:
        """What is counted of this node."""
        return self._attempts.tally

    async def _emit(self, invocation: Invocation, outcome: Outcome) -> None:
        """A succeeded result is an event too, of a function that says where it goes."""
        subject = invocation.function.spec.output.publish
        if outcome.ended.reason:
            return
        for left in range(OUTPUT_TRIES, -1, -1):
            try:
                await self._outcomes.emit(subject, outcome, stored=subject in self._captured)
            except NoStream:
                self._captured.pop(subject, None)  # the stream that captured it is gone
            except StoreRefused as error:
                if not left:
                    log.error("output.lost", **names_of(invocation), subject=subject, error=str(error))
                    return
                await asyncio.sleep(BUS_RETRY_S)
            else:
                return


async def _pause(invocation: Invocation, delay_s: float) -> None:
    """The back-off before the next attempt of a synchronous call; cancelling ends it."""
    cancelled = asyncio.Event()
    invocation.on_cancel = cancelled.set
    try:
        async with asyncio.timeout(delay_s):
            await cancelled.wait()
    except TimeoutError:
        return
    finally:
        invocation.on_cancel = None
