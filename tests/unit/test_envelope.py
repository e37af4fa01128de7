"""What a caller puts around an event: the same identity that the node works out, and nothing that cannot travel."""

from __future__ import annotations

import json
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.bus.cloudevents import decode
from faas.envelope import ID_CHARACTERS, SOURCE, Reply, check_size, completed, in_binary_mode, outgoing
from faas.errors import ConfigInvalid, InvocationFailed, MessageTooLarge
from faas.identity import id_of, invocation_id, payload_digest
from faas.model import Event, EventInvalid

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=40)


def as_the_node_sees_it(headers: dict[str, str], body: bytes) -> tuple[str, str]:
    """(id, source) that the bus' own decoder finds."""
    decoded = decode(headers, body, source="FAAS_EVENTS", event_id="1.2")
    assert not isinstance(decoded, EventInvalid), decoded
    return decoded[0].id, decoded[0].source


@given(id=TEXT, source=TEXT)
def test_the_node_finds_the_identity_that_the_caller_expects(id: str, source: str) -> None:
    """Else a caller waits for the outcome of an invocation that never exists."""
    event = outgoing("a.b", 1, {"CE-Source": quote(source, safe="")}, id=id)

    assert as_the_node_sees_it(dict(event.headers), event.body) == (event.id, event.source) == (id, source)
    assert event.ticket("t", "f").invocation == invocation_id("t", "f", source=source, event_id=id)
    assert all(value.isprintable() for value in event.headers.values())


def test_an_id_among_the_headers_names_the_event() -> None:
    """`--header ce-id=` is as good as `--id`; the latter wins."""
    assert outgoing("a", b"", {"Ce-Id": "x%20y"}, id=None).id == "x y"
    assert [name for name in outgoing("a", b"", {"CE-ID": "x"}, id=None).headers if name.lower() == "ce-id"] == ["ce-id"]


def test_a_structured_event_is_named_by_its_body() -> None:
    """Headers of ours beside it would be another identity."""
    document = {"specversion": "1.0", "id": "s1", "source": "bar", "type": "t", "data": 5}
    event = outgoing("a", json.dumps(document).encode(), {"content-type": "application/cloudevents+json"}, id=None)

    assert (event.id, event.source) == ("s1", "bar")
    assert as_the_node_sees_it(dict(event.headers), event.body) == ("s1", "bar")


def test_one_id_on_two_subjects_is_two_messages() -> None:
    """A stream drops what repeats a message id within two minutes, whatever the subject."""
    first, second = (outgoing(subject, b"", {}, id="order-17") for subject in ("faas.submit.default.a", "faas.submit.default.b"))

    assert first.message_id != second.message_id
    assert first.message_id == outgoing("faas.submit.default.a", b"", {}, id="order-17").message_id


def test_without_an_id_every_event_is_another() -> None:
    """Publishing twice is two events."""
    first, second = outgoing("a", b"", {}, id=None), outgoing("a", b"", {}, id=None)

    assert first.id != second.id
    assert first.source == second.source == SOURCE


@pytest.mark.parametrize(
    ("headers", "body", "id"),
    [
        ({"a": "b\r\nNats-Msg-Id: c"}, b"", None),
        ({"a\n": "b"}, b"", None),
        ({"a:b": "c"}, b"", None),
        ({"": "c"}, b"", None),
        ({"a": "\udcff"}, b"", None),
        ({}, b"", "x" * (ID_CHARACTERS + 1)),
        ({"Content-Type": "application/cloudevents+json"}, b"{", None),
        ({"Content-Type": "application/cloudevents+json"}, b'{"id": 1, "source": "s"}', None),
        ({"Content-Type": "application/cloudevents+json"}, b'{"id": "1", "source": "s"}', "2"),
    ],
)
def test_what_cannot_travel_is_refused_before_it_is_sent(headers: dict[str, str], body: bytes, id: str | None) -> None:
    """A line break in a header is somebody else's header."""
    with pytest.raises(ConfigInvalid):
        outgoing("a", body, headers, id=id)


def test_a_head_counts_against_the_limit() -> None:
    """The server closes the connection over a body that fits with headers that do not."""
    check_size("a", b"x" * 1000, {}, limit_bytes=5096)
    with pytest.raises(MessageTooLarge):
        check_size("a", b"x" * 1000, {"n": "v"}, limit_bytes=5096)


def test_a_failure_keeps_what_was_said() -> None:
    """Code, detail and traceback are the bus's words; a body that is none of ours hides nothing."""
    problem = json.dumps({"code": "error", "detail": "no such picture", "traceback": "Traceback"}).encode()
    with pytest.raises(InvocationFailed, match="failed: error: no such picture") as raised:
        _ = Reply({"Faas-Outcome": "failed", "Faas-Reason": "error"}, problem).result

    assert (raised.value.outcome, raised.value.code, raised.value.traceback) == ("failed", "error", "Traceback")
    assert Reply({"Faas-Outcome": "failed", "Faas-Reason": "error"}, b"\xff").failure.code == "error"
    assert Reply({"Faas-Outcome": "succeeded", "Content-Type": "application/json"}, b"[1]").result == [1]


def test_one_attribute_of_an_event_makes_it_a_whole_event() -> None:
    """`faas invoke resize @a.png --header ce-width=320` names the one that matters, and the node refuses an event without an id."""
    decoded = decode(completed({"CE-Width": "320", "ce-type": "mine"}), b"", source="FAAS_EVENTS", event_id="1.2")

    assert not isinstance(decoded, EventInvalid), decoded
    assert (decoded[0].type, decoded[0].source, dict(decoded[0].extensions)) == ("mine", SOURCE, {"width": "320"})
    assert completed({"Content-Type": "text/plain"}) == {"Content-Type": "text/plain"}


def test_two_ids_that_differ_are_refused_and_two_that_agree_are_one() -> None:
    """One of them would be lost without a word."""
    with pytest.raises(ConfigInvalid, match="two ids"):
        outgoing("a.b", b"", {"CE-ID": "x"}, id="y")

    assert outgoing("a.b", b"", {"ce-id": "x%20y"}, id="x y").id == "x y"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"data": {"a": [1, "é"]}},
        {"data": "text"},
        {"data": None},
        {"datacontenttype": "text/plain", "data": "é text"},
        {"datacontenttype": "image/png", "data_base64": "AAH/"},
        {"datacontenttype": "application/vnd.a+json", "data": [1]},
        {"count": 3, "flag": True, "empty": None, "subject": "a b é", "time": "2026-11-24T08:00:00Z", "data": 1},
    ],
)
def test_a_structured_event_in_binary_mode_is_the_same_event(content: dict[str, object]) -> None:
    """Its caller wrote it in one form, and must not notice that it went in the other."""
    document = {"specversion": "1.0", "id": "e é", "source": "/s", "type": "t", **content}
    structured = {"content-type": "application/cloudevents+json", "Faas-Timeout": "5s"}
    text = json.dumps(document).encode()
    data, headers = in_binary_mode(text, structured)

    assert decode(headers, data, source="", event_id="") == decode(structured, text, source="", event_id="")
    assert headers["Faas-Timeout"] == "5s"


@pytest.mark.parametrize("text", [b"", b"[]", b'{"id": {}}', b'{"data_base64": "?"}', b'{"data_base64": 1}'])
def test_what_is_no_structured_event_is_told_before_it_goes_anywhere(text: bytes) -> None:
    """Half of it would be in the object store."""
    with pytest.raises(ConfigInvalid, match="no CloudEvent in JSON format"):
        in_binary_mode(text, {})


@given(key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255))
def test_an_idempotency_key_names_the_invocation_on_both_sides(key: str) -> None:
    """Whoever hands one in knows the invocation before a node has seen it, and so does whoever repeats it."""
    event = outgoing("faas.submit.t.f", b"1", {"Faas-Idempotency-Key": key}, id=None)
    decoded = decode(dict(event.headers), event.body, source="FAAS_EVENTS", event_id="1.2")

    assert not isinstance(decoded, EventInvalid), decoded
    assert event.id == decoded[0].id == key
    assert event.ticket("t", "f").invocation == id_of("t", "f", decoded[0], control=decoded[1])


def test_a_payload_is_told_from_another_wherever_it_is() -> None:
    """A body that went through the object store in one call, and in the message in the next, is the same body."""
    inline = Event(id="1", source="", type="", subject="", time="", datacontenttype="", dataschema="", extensions={}, data=b"body")
    digest = payload_digest(inline)
    stored = msgspec.structs.replace(inline, data=b"", dataref=f"once.{'r' * 22}.{digest}")

    assert len(digest) == 43
    assert payload_digest(stored) == digest
    assert payload_digest(msgspec.structs.replace(inline, data=b"other")) != digest
