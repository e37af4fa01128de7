"""From a message to an invocation, where reading it goes wrong on our side."""

from __future__ import annotations

import time

from faas import admission
from faas.bus.connection import Message
from faas.model import EventInvalid, FunctionSpec, FunctionVersion
from faas.security.tenants import Tenants

FUNCTION = FunctionVersion(spec=FunctionSpec(name="f"), version="v", files=())


def test_a_mistake_of_ours_in_decoding_ends_the_event() -> None:
    """An exception would have it delivered again for ever: admission comes before the limit on deliveries."""
    message = Message("in.f", "", {"Content-Type": "application/cloudevents+json"}, 7)  # type: ignore[arg-type]

    found = admission.of_message(message, FUNCTION, answered=True, now=time.time(), tenants=Tenants())

    assert isinstance(found, EventInvalid)
    assert "fails to decode" in found.detail
