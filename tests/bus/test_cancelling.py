"""Looking for an invocation that no node has among the events that wait, in one process with the server."""

from __future__ import annotations

import pytest
from pulling import a_function

from faas.admission import of_message
from faas.bus.connection import Bus, Message
from faas.bus.consumers import Consumer
from faas.bus.outcomes import Outcomes
from faas.cancelling import Cancelling
from faas.errors import BusUnavailable
from faas.identity import invocation_id
from faas.invocation import Invocation
from faas.model import FunctionVersion
from faas.security.tenants import Tenants
from faas.unended import Unended

WAITING = 5


async def fill(bus: Bus, tenant: str) -> FunctionVersion:
    """A function of which WAITING events wait."""
    for number in range(WAITING):
        await bus.store(f"{tenant}.in", b"", head=f"Nats-Msg-Id: {tenant}-{number}\r\n".encode())
    return FunctionVersion(spec=a_function(tenant, "f", f"{tenant}.in"), version="1", files=())


def named(tenant: str, number: int) -> str:
    return invocation_id(tenant, "f", source="FAAS_EVENTS", event_id=f"{tenant}-{number}")


async def test_what_lies_deeper_than_is_looked_is_not_called_unknown(bus: Bus, consumer: Consumer, tenant: str) -> None:
    """It waits, and will run: whoever is told that there is no such invocation believes that it will not."""
    function = await fill(bus, tenant)
    async with Cancelling.open(bus, Outcomes(bus), Unended(), look_at=WAITING - 2) as cancelling:
        cancelling.functions = lambda key: function
        first = await cancelling.cancel(tenant, "f", named(tenant, 0))
        with pytest.raises(BusUnavailable, match="not among the first 3"):
            await cancelling.cancel(tenant, "f", named(tenant, WAITING - 1))

    assert first.cancelled


async def test_an_event_that_calls_itself_another_invocation_is_not_that(bus: Bus, consumer: Consumer, tenant: str) -> None:
    """Those headers are honoured where the runtime writes alone; elsewhere anybody may."""
    function = await fill(bus, tenant)
    own = {"Faas-Invocation": "a" * 26, "Faas-First-Seen": "2026-11-24T08:00:00Z", "Faas-Event-Id": "e"}
    await bus.store(f"{tenant}.in", b"", head="".join(f"{name}: {value}\r\n" for name, value in own.items()).encode())
    async with Cancelling.open(bus, Outcomes(bus), Unended()) as cancelling:
        cancelling.functions = lambda key: function
        answer = await cancelling.cancel(tenant, "f", "a" * 26)

    assert (answer.cancelled, answer.known) == (False, False)


@pytest.mark.parametrize("stored", [True, False])
async def test_what_is_held_under_one_name_is_not_cancelled_under_another(bus: Bus, consumer: Consumer, tenant: str, stored: bool) -> None:
    """Whoever may cancel for his own tenant alone names that in the subject, and anybody's invocation behind it."""
    function = FunctionVersion(spec=a_function(tenant, "f"), version="1", files=())
    event = Message(f"{tenant}.in", "", b"", None)
    held = of_message(event, function, answered=True, now=0.0, tenants=Tenants())
    assert isinstance(held, Invocation)
    unended = Unended()
    if stored:
        await unended.alone(held)
    else:
        unended.add(held, "")
    async with Cancelling.open(bus, Outcomes(bus), unended) as cancelling:
        await cancelling.listen()
        others = [await cancelling.cancel(*named, held.id) for named in (("rival", "f"), (tenant, "g"))]
        await bus.fence()
        untouched = not held.cancelled and not unended.is_cancelled(held.id)
        own = await cancelling.cancel(tenant, "f", held.id)

    assert [(answer.cancelled, answer.known) for answer in others] == [(False, False)] * 2
    assert untouched
    assert own.cancelled
