"""A result as an event for others, in one process with the server."""

from __future__ import annotations

from faas.bus.connection import Bus
from faas.bus.consumers import Consumer
from faas.bus.outcomes import Outcomes
from faas.identity import random_invocation_id
from faas.model import Ended, Outcome, Phases


async def test_an_output_is_not_kept_out_by_a_stranger_that_used_its_message_id_first(bus: Bus, consumer: Consumer, tenant: str) -> None:
    """An invocation's id can be worked out from its event's, and a stream knows an id once for all subjects."""
    invocation, own, strangers = random_invocation_id(), f"faas.submit.{tenant}.f", f"{tenant}.in"
    outcome = Outcome(
        invocation_id=invocation,
        tenant=tenant,
        function="f",
        version="1",
        event_id="e",
        attempt=1,
        ended=Ended(body=b"7", content_type="application/json"),
        phases=Phases(),
    )
    await bus.store(strangers, b"", head=f"Nats-Msg-Id: {invocation}\r\n".encode())
    await Outcomes(bus).emit(own, outcome, stored=True)
    stored = await bus.last_stored("FAAS_EVENTS", own)

    assert stored is not None
    assert stored.data == b"7"
