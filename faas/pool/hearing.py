"""What one attempt says while it runs: items of its stream, events that its handler publishes, its meters; and what of it may not be said.

Owns the check of every subject that a function names, which its worker is not trusted with. Knows no clock and no end of the attempt.
"""

from __future__ import annotations

from faas import subjects
from faas.bus.speech import Item, Published, Speech, Voice, event_of
from faas.invocation import Invocation
from faas.model import Ended
from faas.pool.metering import Meter
from faas.pool.worker import Worker
from faas.security.tenants import Tenants
from faas.worker import wire
from faas.worker.trace import span_of


class Hearing:
    """What one attempt says while it runs, and where that goes. Nothing is made for an attempt that says nothing."""

    def __init__(self, speech: Speech, worker: Worker, *, invocation: Invocation, meter: Meter, tenants: Tenants) -> None:
        self._speech, self._worker, self._invocation, self._meter = speech, worker, invocation, meter
        self._tenants = tenants
        self._voice: Voice | None = None
        self._refused = ""
        invocation.items = 0

    def hear(self, said: wire.Chunk | wire.Emit | wire.Metered) -> None:
        """One word of the worker."""
        if isinstance(said, wire.Metered):
            self._meter.meters = said.meters
            return
        invocation = self._invocation
        chunk_to = invocation.control.chunk_to
        if self._voice is None:
            self._voice = self._speech.voice(
                chunk_to=chunk_to, attempt=invocation.attempts + 1, pause=self._worker.pause, resume=self._worker.resume
            )
        if isinstance(said, wire.Emit):
            if problem := self._problem_with(said):
                self._refused = f"ctx.publish to {said.subject[:80]!r}: {problem}"
            else:
                self._voice.say(_event(invocation, said))
        elif chunk_to:
            invocation.items += 1
            self._voice.say(Item(said.data, said.content_type))

    def _problem_with(self, said: wire.Emit) -> str:
        """`ctx.publish` refuses most of it too; who writes frames of his own is refused here."""
        if problem := subjects.problem_with(said.subject):
            return problem
        if set("*>") & set(said.subject):
            return "it has a wildcard"
        if not said.id.startswith(f"{self._invocation.id}."):
            return "its id is that of another invocation"  # the bus would drop the other's event for a repetition
        return self._tenants.not_published(self._invocation.function.spec.tenant, said.subject)

    async def end(self, ended: Ended) -> Ended:
        """The end of the attempt, once all that it said is on the bus; a success that could not publish is none."""
        if self._voice is None:
            return ended
        await self._voice.finish()
        failure = self._refused or self._voice.failure
        return Ended(reason="error", detail=failure) if failure and not ended.reason else ended

    def close(self) -> None:
        """Where it was cancelled before its end, because another node has the event by now, nothing more of it is said."""
        if self._voice is not None:
            self._voice.drop()


def _event(invocation: Invocation, said: wire.Emit) -> Published:
    spec = invocation.function.spec
    return event_of(
        said.subject,
        said.data,
        id=said.id,
        source=f"/faas/{spec.tenant}/{spec.name}",
        content_type=said.content_type,
        depth=invocation.control.depth + 1,
        trace=trace_of(invocation),
    )


def trace_of(invocation: Invocation) -> tuple[str, str]:
    """(traceparent, tracestate) of the attempt that runs: what it publishes is caused by it."""
    extensions = invocation.event.extensions
    traceparent = span_of(extensions.get("traceparent", ""), invocation.id, invocation.attempts + 1)
    return traceparent, extensions.get("tracestate", "") if "traceparent" in extensions else ""
