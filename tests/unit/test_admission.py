"""From a message to an invocation, where reading it goes wrong on our side."""

from __future__ import annotations

import time

import pytest

from faas import admission
from faas.bus.connection import Message
from faas.invocation import Invocation
from faas.model import EventInvalid, FunctionSpec, FunctionVersion
from faas.security.tenants import Tenants

FUNCTION = FunctionVersion(spec=FunctionSpec(name="f"), version="v", files=())


def test_a_mistake_of_ours_in_decoding_ends_the_event() -> None:
    """An exception would have it delivered again for ever: admission comes before the limit on deliveries."""
    message = Message("in.f", "", {"Content-Type": "application/cloudevents+json"}, 7)  # type: ignore[arg-type]

    found = admission.of_message(message, FUNCTION, answered=True, now=time.time(), tenants=Tenants())

    assert isinstance(found, EventInvalid)
    assert "fails to decode" in found.detail


@pytest.mark.parametrize("header", ["Faas-Reply-To", "Faas-Chunk-To"])
@pytest.mark.parametrize(
    ("subject", "refused"),
    [
        ("_INBOX.abc.1", False),
        ("_INBOX_UACME.abc.1", False),
        ("_INBOX_faas_node.gpu-1.0f.p.3.9c.items", False),
        ("_INBOX_faas_node.gpu-1.0f.r.3", True),
        ("_R_.abc.def", True),
        ("$JS.API.STREAM.PURGE.FAAS_EVENTS", True),
    ],
)
def test_an_event_names_no_subject_where_somebody_waits_for_the_bus(header: str, subject: str, refused: bool) -> None:
    """What a function returns would be taken for the answer to another question."""
    message = Message("in.f", "", b"1", {header: subject})
    found = admission.of_message(message, FUNCTION, answered=True, now=time.time(), tenants=Tenants())

    assert isinstance(found, EventInvalid if refused else Invocation)
