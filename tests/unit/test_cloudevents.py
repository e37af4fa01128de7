"""Messages to events and back: binary, structured and plain; the `cloudevents` package is the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from faas.bus.cloudevents import binary_head, decode
from faas.bus.messages import decode_head
from faas.model import Control, Event, EventInvalid

REQUIRED = {"ce-specversion": "1.0", "ce-id": "e1", "ce-source": "/here", "ce-type": "t"}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEXT = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1, max_size=20)


def event_of(headers: Mapping[str, str] | None, data: bytes = b"") -> Event:
    decoded = decode(headers, data, source="FAAS_EVENTS", event_id="7.1700000000000000000")
    assert not isinstance(decoded, EventInvalid), decoded.detail
    return decoded[0]


def control_of(headers: Mapping[str, str]) -> Control:
    decoded = decode(headers, b"", source="FAAS_EVENTS", event_id="7.17")
    assert not isinstance(decoded, EventInvalid), decoded.detail
    return decoded[1]


def refusal_of(headers: Mapping[str, str], data: bytes = b"") -> str:
    decoded = decode(headers, data, source="FAAS_EVENTS", event_id="7.17")
    assert isinstance(decoded, EventInvalid)
    return decoded.detail


def structured(**attributes: object) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "e1", "source": "/here", "type": "t", **attributes}).encode()


# ---------------------------------------------------------------- identity


def test_a_message_without_headers_is_named_by_its_place_in_the_stream() -> None:
    """No other event can have that name, so nothing needs to be looked up."""
    event = event_of(None, b"body")

    assert (event.source, event.id, event.explicit_id, event.data) == ("FAAS_EVENTS", "7.1700000000000000000", False, b"body")


def test_a_plain_message_is_named_by_its_message_id() -> None:
    """A publisher that retries uses the same one: the same invocation."""
    event = event_of({"nats-msg-id": "m1", "Content-Type": "text/plain"}, b"x")

    assert (event.source, event.id, event.explicit_id, event.datacontenttype) == ("FAAS_EVENTS", "m1", True, "text/plain")


def test_an_event_in_binary_mode_brings_its_own_name() -> None:
    """The id of the message is the publisher's business with the stream, no part of the event."""
    event = event_of({**REQUIRED, "Nats-Msg-Id": "m1"})

    assert (event.source, event.id, event.explicit_id) == ("/here", "e1", True)


# ---------------------------------------------------------------- binary mode


def test_header_names_are_compared_without_case() -> None:
    """Clients in other languages write Ce-Id."""
    assert event_of({name.title(): value for name, value in REQUIRED.items()}).id == "e1"


def test_the_content_type_stands_in_for_a_missing_datacontenttype() -> None:
    """What an HTTP library writes; where both are there, the event's own attribute holds."""
    assert event_of({**REQUIRED, "Content-Type": "image/png"}).datacontenttype == "image/png"
    assert event_of({**REQUIRED, "Content-Type": "image/png", "ce-datacontenttype": "text/plain"}).datacontenttype == "text/plain"


@given(TEXT, TEXT, TEXT)
def test_binary_mode_agrees_with_the_cloudevents_package(event_id: str, subject: str, extension: str) -> None:
    """Its percent-encoding is what other programs send."""
    theirs = CloudEvent(
        {"id": event_id, "source": "/a", "type": "t", "subject": subject, "ext1": extension, "datacontenttype": "text/plain"}, b"body"
    )
    message = http.to_binary_event(theirs)
    event = event_of(message.headers, message.body)

    assert (event.id, event.subject, event.extensions, event.datacontenttype) == (event_id, subject, {"ext1": extension}, "text/plain")
    assert datetime.fromisoformat(event.time) == theirs.get_time()


@given(TEXT, TEXT)
def test_the_cloudevents_package_reads_what_we_write(event_id: str, extension: str) -> None:
    """A result is an event that strangers subscribe to."""
    head = binary_head(
        {"specversion": "1.0", "id": event_id, "source": "/faas/t/f", "type": "faas.succeeded", "ext1": extension, "subject": ""}
    )
    theirs = http.from_binary_event(http.HTTPMessage(headers=decode_head(b"NATS/1.0\r\n" + head), body=b"{}"))

    assert head.isascii()
    assert (theirs.get_id(), theirs.get_source(), theirs.get_extension("ext1"), theirs.get_subject()) == (
        event_id,
        "/faas/t/f",
        extension,
        None,
    )


# ---------------------------------------------------------------- structured mode


@given(
    st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
)
def test_structured_mode_agrees_with_the_cloudevents_package(data: object) -> None:
    """The body of the event is the JSON of its data."""
    theirs = http.to_structured_event(
        CloudEvent({"id": "e1", "source": "/a", "type": "t", "datacontenttype": "application/json"}, {"data": data})
    )
    event = event_of(theirs.headers, theirs.body)

    assert json.loads(event.data) == {"data": data}
    assert (event.id, event.source, event.datacontenttype) == ("e1", "/a", "application/json")


@pytest.mark.parametrize(
    ("attributes", "data", "content_type"),
    [
        ({"data": "hi", "datacontenttype": "text/plain"}, b"hi", "text/plain"),
        ({"data": "hi"}, b'"hi"', "application/json"),
        ({"data": {"a": 1}, "datacontenttype": "application/vnd.x+json"}, b'{"a": 1}', "application/vnd.x+json"),
        ({"data_base64": "aGk=", "datacontenttype": "image/png"}, b"hi", "image/png"),
        ({}, b"", "application/json"),
        ({"data": None}, b"null", "application/json"),
    ],
)
def test_the_data_of_a_structured_event_is_what_it_stands_for(attributes: dict[str, object], data: bytes, content_type: str) -> None:
    """JSON stays JSON, text that JSON had to quote is text, base64 is bytes."""
    event = event_of({"content-type": "Application/CloudEvents+JSON; charset=utf-8"}, structured(**attributes))

    assert (event.data, event.datacontenttype) == (data, content_type)


def test_extensions_are_text_whatever_their_type() -> None:
    """`faas.Event.extensions` is a dict of strings; null is an attribute that is not there."""
    assert event_of(STRUCTURED, structured(a=True, b=7, c="x", d=None)).extensions == {"a": "true", "b": "7", "c": "x"}


# ---------------------------------------------------------------- trace, time


@pytest.mark.parametrize("header", ["traceparent", "Traceparent", "ce-traceparent"])
def test_trace_context_is_carried_through(header: str) -> None:
    """As an extension of the event, or as W3C's own header."""
    assert event_of({**REQUIRED, header: TRACE}).extensions["traceparent"] == TRACE


@pytest.mark.parametrize("value", ["", "x", TRACE.upper(), TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), "ff" + TRACE[2:]])
@pytest.mark.parametrize("header", ["traceparent", "ce-traceparent"])
def test_an_invalid_trace_is_dropped_and_fails_nothing(header: str, value: str) -> None:
    """W3C: it restarts the trace."""
    assert "traceparent" not in event_of({**REQUIRED, header: value}).extensions


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-11-24T08:00:00Z", "2026-11-24T08:00:00+00:00"),
        ("2026-11-24t08:00:00.5z", "2026-11-24T08:00:00.500000+00:00"),
        ("2026-11-24T08:00:00.123456789+05:30", "2026-11-24T08:00:00.123456+05:30"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59+00:00"),
    ],
)
def test_a_time_is_any_form_of_rfc_3339_and_python_can_read_it(written: str, meant: str) -> None:
    """The worker makes a datetime of it."""
    assert datetime.fromisoformat(event_of({**REQUIRED, "ce-time": written}).time) == datetime.fromisoformat(meant)


# ---------------------------------------------------------------- control


def test_control_headers_are_read_once_at_the_edge() -> None:
    """Whatever their case; and nothing is asked for where there are none."""
    control = control_of(
        {"faas-timeout": "250ms", "Faas-Deadline": "2026-11-24T08:00:00Z", "FAAS-REPLY-TO": "_INBOX.a.b", "Faas-Depth": "3"}
    )
    deadline = datetime(2026, 11, 24, 8, tzinfo=UTC).timestamp()

    assert control == Control(timeout_s=0.25, deadline_at=deadline, reply_to="_INBOX.a.b", depth=3)
    assert control_of(REQUIRED) == Control()


def test_the_earlier_of_deadline_and_expirytime_holds() -> None:
    """Both may only shorten."""
    early, late = "2026-11-24T08:00:00Z", "2026-11-24T09:00:00Z"
    expected = datetime(2026, 11, 24, 8, tzinfo=UTC).timestamp()

    assert control_of({**REQUIRED, "Faas-Deadline": late, "ce-expirytime": early}).deadline_at == expected
    assert control_of({**REQUIRED, "Faas-Deadline": early, "ce-expirytime": late}).deadline_at == expected
    assert control_of({**REQUIRED, "ce-expirytime": early}).deadline_at == expected


@pytest.mark.parametrize("name", ["Faas-Invocation", "Faas-Attempt", "Faas-First-Seen"])
def test_what_only_the_runtime_may_say_is_ignored(name: str) -> None:
    """A publisher that could choose an invocation's id could take another's outcome."""
    assert control_of({name: "x"}) == Control()
    assert event_of({name: "x"}).id == "7.1700000000000000000"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({**REQUIRED, "ce-specversion": "0.3"}, "specversion '0.3'"),
        ({**REQUIRED, "ce-id": ""}, "attribute id is missing"),
        ({name: value for name, value in REQUIRED.items() if name != "ce-source"}, "attribute source is missing"),
        ({"ce-id": "only"}, "attribute specversion is missing"),
        ({**REQUIRED, "ce-time": "yesterday"}, "no RFC 3339 time"),
        ({**REQUIRED, "ce-time": "2026-11-24"}, "no RFC 3339 time"),
        ({**REQUIRED, "ce-time": "2026-13-24T08:00:00Z"}, "no RFC 3339 time"),
        ({**REQUIRED, "ce-a_b": "x"}, "'a_b' is no attribute name"),
        ({**REQUIRED, "ce-": "x"}, "'' is no attribute name"),
        ({**REQUIRED, "ce-x": "%ff"}, "ce-x is not percent-encoded UTF-8"),
        ({**REQUIRED, "ce-expirytime": "soon"}, "expirytime 'soon'"),
        (
            {**REQUIRED, "ce-dataref": "https://example.org/x"},
            "dataref 'https://example.org/x' is not supported; put the payload into FAAS_PAYLOADS",
        ),
        ({**REQUIRED, "ce-dataref": "FAAS_PAYLOADS/"}, "dataref"),
        ({**REQUIRED, "ce-dataref": "FAAS_PAYLOADS/" + "x" * 513}, "dataref"),
        ({**REQUIRED, "ce-dataref": "FAAS_PAYLOADS/a%0Ab"}, "dataref"),
        ({"Faas-Timeout": "5"}, "Faas-Timeout"),
        ({"Faas-Timeout": "0s"}, "above zero"),
        ({"Faas-Deadline": "12:00"}, "Faas-Deadline '12:00'"),
        ({"Faas-Depth": "-1"}, "Faas-Depth '-1'"),
        ({"Faas-Depth": "\u0663"}, "no whole number"),
        ({"Faas-Chunk-To": "a.*"}, "Faas-Chunk-To 'a.*' is no subject"),
        ({"faas-idempotency-key": "a" * 256}, "is no key; it has 1 to 255 printable ASCII characters"),
        ({"faas-idempotency-key": ""}, "Faas-Idempotency-Key: '' is no key"),
        ({"": "unreadable"}, "cannot be read"),
    ],
)
def test_what_is_wrong_with_the_headers_is_said_in_one_sentence(headers: dict[str, str], said: str) -> None:
    """It goes into the dead letter, where its sender looks."""
    assert said in refusal_of(headers)


@pytest.mark.parametrize("subject", ["", "a.*", "a.>", "a b", "a\tb", "faas", "faas.outcome.x", "$JS.API.INFO", ".a", "a..b", "x" * 300])
def test_a_reply_goes_nowhere_that_a_stranger_may_not_publish(subject: str) -> None:
    """The runtime publishes it with its own rights: its subjects, NATS' own, and broken protocol lines are refused."""
    assert "no subject that may be published to" in refusal_of({"Faas-Reply-To": subject})


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/cloudevents", structured(), "not supported"),
        ("application/cloudevents-batch+json", b"[]", "not supported"),
        ("application/cloudevents+avro", b"", "not supported"),
        ("application/cloudevents+json", b"", "no CloudEvent in JSON format"),
        ("application/cloudevents+json", b"[]", "no CloudEvent in JSON format"),
        ("application/cloudevents+json", b"[" * 100_000, "no CloudEvent in JSON format"),
        ("application/cloudevents+json", b'{"a":' * 100_000, "no CloudEvent in JSON format"),
        ("application/cloudevents+json", structured(data=1, data_base64=""), "exclude each other"),
        ("application/cloudevents+json", structured(data_base64="!"), "not base64"),
        ("application/cloudevents+json", structured(data_base64=5), "not base64"),
        ("application/cloudevents+json", structured(x=1.5), "x is neither"),
        ("application/cloudevents+json", structured(x={"a": 1}), "x is neither"),
        ("application/cloudevents+json", structured(x=2**31), "x is neither"),
        ("application/cloudevents+json", structured(X="1"), "'X' is no attribute name"),
        (
            "application/cloudevents+json",
            b'{"specversion":"1.0","id":"i","source":"s","type":"t","x":' + b"9" * 6000 + b"}",
            "x is neither",
        ),
    ],
)
def test_what_is_wrong_with_a_structured_body_is_said_in_one_sentence(content_type: str, body: bytes, said: str) -> None:
    """It runs in the node, on bytes of a stranger: nothing of it may end anything else."""
    assert said in refusal_of({"Content-Type": content_type}, body)


NAMES = st.sampled_from(
    [*REQUIRED, "ce-time", "Content-Type", "Nats-Msg-Id", "Faas-Timeout", "Faas-Deadline", "Faas-Depth", "Faas-Reply-To"]
)
VALUES = st.sampled_from(["1.0", "application/cloudevents+json", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]) | st.text(
    max_size=12
)
VALUES_JSON = st.sampled_from([structured(), structured(data="x", datacontenttype="t"), structured(time="0001-01-01T00:00:00+23:59")])


@given(st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=6), st.binary(max_size=40) | VALUES_JSON)
def test_decoding_never_raises(headers: dict[str, str], data: bytes) -> None:
    """Whatever it is, it is an event or one sentence."""
    decoded = decode(headers, data, source="s", event_id="1.2")

    assert isinstance(decoded, EventInvalid | tuple)


@pytest.mark.parametrize(
    ("headers", "data"),
    [
        ({**REQUIRED, "Ce-DataRef": "FAAS_PAYLOADS/a%2520b/%C3%A9.png"}, b""),
        (STRUCTURED, structured(dataref="FAAS_PAYLOADS/a%20b/\u00e9.png")),
    ],
    ids=["binary", "structured"],
)
def test_a_dataref_is_where_the_payload_is_and_no_attribute_for_the_handler(headers: dict[str, str], data: bytes) -> None:
    """The claim check of CloudEvents: the name is as its owner wrote it."""
    event = event_of(headers, data)

    assert (event.dataref, event.data, event.extensions) == ("a%20b/\u00e9.png", b"", {})


def test_a_payload_beside_its_dataref_is_the_payload() -> None:
    """CloudEvents wants both to be the same; nothing is fetched then."""
    event = event_of({**REQUIRED, "ce-dataref": "FAAS_PAYLOADS/x"}, b"here")

    assert (event.dataref, event.data) == ("", b"here")
