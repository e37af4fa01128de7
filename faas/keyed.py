"""Synchronous and at-most-once events with an idempotency key: stored like any durable event, and answered with the one outcome that it has.

Whoever repeats one, on whichever node, while it runs or when it has ended, gets that outcome; a node that dies between costs time
alone. Runs nothing itself: what it stores comes back as a delivery, to this node or another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from faas import subjects
from faas.bus.connection import Bus, Message, NoStream
from faas.bus.keys import Accepted, Keyed, Keys
from faas.bus.outcomes import Outcomes, StoredOutcome
from faas.bus.speech import Speech
from faas.errors import AskAgain, BusUnavailable, KeyReused, MessageTooLarge
from faas.invocation import Invocation
from faas.model import Ended

SOON_S = 0.002
"""An outcome is heard before its stream has stored it, more often than not: it is looked for again after so long, then twice as long each time."""
LOOK_EVERY_S, STOPPING_S = 5.0, 0.25
"""An outcome is heard; the message that says so may be lost with a connection, so it is looked for now and then too."""
START_S = 60.0
"""An event without a deadline may take so long to start, and then as long as its function may, before its caller is told to ask again."""


class KeyedCalls:
    """One for a node. `answer` may run many times at once. `holds` says whether this node has an invocation that has not ended."""

    def __init__(self, bus: Bus, keys: Keys, *, outcomes: Outcomes, speech: Speech, holds: Callable[[str], object]) -> None:
        self._bus, self._keys, self._outcomes, self._speech = bus, keys, outcomes, speech
        self._holds = holds
        self._waiting: set[asyncio.Event] = set()
        self._draining = False

    async def answer(self, invocation: Invocation, message: Message, reply_to: str) -> Ended | str:
        """Have it run once and, where somebody waits at `reply_to`, answer with its outcome; the reason of that, "" for a success.

        An `Ended` says why it was refused, and is for the caller to answer. Raises AskAgain where the outcome is not there in time, or the node stops.
        """
        spec = invocation.function.spec
        keyed = Keyed.of(spec.tenant, spec.name, invocation.event, control=invocation.control)
        control, woken = invocation.control, asyncio.Event()
        told = bool(reply_to or control.reply_to or control.chunk_to)
        subject = subjects.outcome(spec.tenant, spec.name, keyed.invocation)
        heard = await self._bus.subscribe(subject, lambda _: woken.set()) if told else None
        self._waiting.add(woken)
        try:
            accepted = await self._keys.accept(keyed, message.data, message.headers)
            if not reply_to and not (accepted.repeated and told):
                return ""  # what its event names is told where that ends
            outcome = accepted.outcome or await self._outcome(keyed, woken, within_s=_patience_s(invocation))
            keyed.compare(outcome.payload_digest)
            await self._say(invocation, accepted, outcome, reply_to=reply_to)
            return outcome.reason
        except KeyReused as error:
            return Ended(reason="event_invalid", detail=str(error))
        except MessageTooLarge as error:
            return Ended(reason="payload_too_large", detail=str(error))
        except (BusUnavailable, NoStream) as error:  # stored or not: asked again, it is stored once
            raise AskAgain(str(error)) from error
        finally:
            self._waiting.discard(woken)
            if heard is not None:
                await heard.unsubscribe()

    async def _outcome(self, keyed: Keyed, woken: asyncio.Event, *, within_s: float) -> StoredOutcome:
        """Wait for it. What is heard may be an outcome that its guard refused, so it is read."""
        until_monotonic, look_s = time.monotonic() + within_s, LOOK_EVERY_S
        while True:
            held = not self._draining or self._holds(keyed.invocation) is not None
            if (found := await self._outcomes.find(keyed.tenant, keyed.function, keyed.invocation, leader=True)) is not None:
                return found
            if not held:  # before it was looked for: its end is stored before it is let go
                raise AskAgain("this node stops; another, or its next start, answers")
            left_s = until_monotonic - time.monotonic()
            if left_s <= 0:
                raise AskAgain("it has not ended yet; send it again with the same key")
            try:
                async with asyncio.timeout(min(look_s, left_s)):
                    await woken.wait()
            except TimeoutError:
                look_s = min(2 * look_s, STOPPING_S if self._draining else LOOK_EVERY_S)
            else:
                woken.clear()
                look_s = SOON_S

    async def _say(self, invocation: Invocation, accepted: Accepted, outcome: StoredOutcome, *, reply_to: str) -> None:
        """Answer; what a repetition named beside that is not what the stored event names, so it is told here."""
        control = invocation.control
        if accepted.repeated and control.chunk_to:
            items = invocation.items
            await self._speech.end_stream(
                control.chunk_to, items=items, attempt=outcome.attempt, outcome=outcome.outcome, reason=outcome.reason
            )
        if reply_to:
            await self._outcomes.repeat(reply_to, outcome)
        if accepted.repeated and control.reply_to:
            await self._outcomes.forward(control.reply_to, outcome)

    def drain(self) -> None:
        """Let those go that wait for what this node does not run: it is stored, and another node has it or will."""
        self._draining = True
        for woken in self._waiting:
            woken.set()


def _patience_s(invocation: Invocation) -> float:
    """Until its deadline and a little more, for the outcome that says so; without one as long as its start, its load and its run may take."""
    left_s = invocation.deadline_monotonic - time.monotonic()
    limits = invocation.function.spec.limits
    return min(left_s + LOOK_EVERY_S, START_S + float(limits.load_timeout_s) + float(limits.timeout_s))
