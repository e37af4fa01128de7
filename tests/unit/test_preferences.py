"""What a request asks by `Prefer` and `Accept`, and whose stream its items go to. Pure."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from faas.admission import of_message
from faas.bus.connection import Message
from faas.gateway.incoming import Preference, accepted, preference_of, wants_stream, wants_structured
from faas.gateway.problems import Refusal
from faas.model import EventInvalid, FunctionSpec, FunctionVersion
from faas.security.tenants import Tenants


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Preference()),
        ("respond-async", Preference(True)),
        ("Respond-Async, WAIT=10", Preference(True, 10)),
        ('wait="5"; foo=bar', Preference(False, 5)),
        ("wait=5, wait=9", Preference(False, 5)),
        ("wait=99999", Preference(False, 600)),
        ("return=minimal, handling=lenient", Preference()),
    ],
)
def test_a_preference_is_read_as_rfc_7240_has_it(header: str, expected: Preference) -> None:
    """Names without case, values quoted or not, the first of two, and what is not known ignored."""
    assert preference_of(make_mocked_request("POST", "/", headers={"Prefer": header})) == expected


@pytest.mark.parametrize("header", ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "wait=1e3", "wait=٣"])
def test_a_time_to_wait_that_is_none_is_refused(header: str) -> None:
    """Ignored, the client would take 202 for what it asked for."""
    with pytest.raises(Refusal):
        preference_of(make_mocked_request("POST", "/", headers={"Prefer": header}))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("*/*", ["*/*"]),
        ("text/html;q=0.5, image/png, */*;q=0.1", ["image/png", "text/html", "*/*"]),
        ("application/json;q=0, text/plain;q=x, image/png;q=1.0", ["image/png"]),
    ],
)
def test_what_is_accepted_is_ordered_by_its_weight(header: str, expected: list[str]) -> None:
    """A browser names ten types, of which one is wanted."""
    assert accepted(make_mocked_request("GET", "/", headers={"Accept": header})) == expected


def test_a_stream_is_sent_to_whoever_takes_one_and_a_structured_event_to_whoever_wants_it_most() -> None:
    """`*/*` asks for neither."""
    stream = make_mocked_request("POST", "/", headers={"Accept": "text/event-stream"})
    structured = make_mocked_request("POST", "/", headers={"Accept": "application/cloudevents+json, */*;q=0.1"})
    anything = make_mocked_request("POST", "/", headers={"Accept": "*/*"})

    assert (wants_stream(stream), wants_stream(anything)) == (True, False)
    assert (wants_structured(structured), wants_structured(anything), wants_structured(stream)) == (True, False, False)


def test_items_cannot_be_sent_to_the_readers_of_another_invocation() -> None:
    """Whoever may invoke one function could put words into the stream of any other."""
    function = FunctionVersion(spec=FunctionSpec(name="f"), version="v", files=())
    headers = {"Faas-Chunk-To": f"faas.chunk.other.g.{'a' * 26}"}

    found = of_message(Message("faas.invoke.default.f", "r", b"1", headers), function, answered=True, now=0.0, tenants=Tenants())

    assert isinstance(found, EventInvalid)
    assert "another invocation" in found.detail
