"""What hides secrets in text: every usual way of writing one, cut lines, and nothing that is no secret."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.worker.redaction import NOTHING, PIECE_BYTES, SHORTEST_BYTES, Redactor

VALUE = 'p@ss word/+"ü\\2&=%'
NAME = "[secret api_key]"


def hiding(*values: str) -> Redactor:
    return Redactor({"api_key": [value.encode() for value in values]})


@pytest.mark.parametrize(
    "written",
    [
        VALUE,
        base64.b64encode(VALUE.encode()).decode(),
        base64.urlsafe_b64encode(VALUE.encode()).decode(),
        VALUE.encode().hex(),
        VALUE.encode().hex().upper(),
        quote(VALUE, safe=""),
        quote(VALUE),
        quote_plus(VALUE),
        urlencode({"key": VALUE}),
        json.dumps({"key": VALUE}),
        json.dumps({"key": VALUE}, ensure_ascii=False),
        repr({"key": VALUE}),
        repr(VALUE.encode()),
    ],
)
def test_a_value_is_hidden_as_programs_write_it(written: str) -> None:
    """A request that failed quotes its address, a client its header, a traceback its arguments."""
    hidden = hiding(VALUE).text(f"before {written} after")

    assert NAME in hidden
    assert not any(part in hidden for part in ("p@ss", "cEBzcyB3", "70407373", "p%40ss"))
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")


@given(
    user=st.text(max_size=12),
    value=st.text(st.characters(codec="ascii", min_codepoint=33), min_size=12, max_size=40),
    rest=st.text(max_size=5),
)
def test_a_value_is_hidden_inside_of_what_is_encoded_with_others(user: str, value: str, rest: str) -> None:
    """`Authorization: Basic` encodes user and password together, and at each of three places the letters are others."""
    encoded = base64.b64encode(f"{user}:{value}{rest}".encode()).decode()

    hidden = hiding(value).text(encoded)

    assert NAME in hidden
    left = hidden.replace(NAME, "")
    assert len(left) <= len(base64.b64encode(f"{user}:{rest}".encode())) + 8


@pytest.mark.parametrize("value", ["", "a", "1234567", "\n", " \n \n"])
def test_a_short_value_hides_nothing(value: str) -> None:
    """ "a" would blank out every line; that it is not hidden is said by the doctor."""
    assert len(value.strip()) < SHORTEST_BYTES
    assert hiding(value).text("a 1234567 line\n") == "a 1234567 line\n"


def test_each_line_of_a_value_is_hidden_by_itself() -> None:
    """A key of several lines is printed line by line; its frame says nothing and stays."""
    key = "-----BEGIN KEY-----\nMIIBVQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"

    hidden = [hiding(key).text(line) for line in key.splitlines()]

    assert hidden == ["-----BEGIN KEY-----", NAME, NAME, "-----END KEY-----"]


def test_every_value_that_verifies_is_hidden_under_its_name() -> None:
    """While a secret is turned over, the one before is as good as the new one."""
    both = Redactor({"old": [b"one-one-one"], "new": [b"two-two-two", b"three-three"]})

    assert both.text("one-one-one two-two-two three-three") == "[secret old] [secret new] [secret new]"


def test_a_value_that_holds_another_is_hidden_whole() -> None:
    """Else what is left of the longer one would show."""
    both = Redactor({"short": [b"abcdefgh"], "long": [b"abcdefgh-ijklmnop"]})

    assert both.text("abcdefgh-ijklmnop abcdefgh") == "[secret long] [secret short]"


@given(st.binary(max_size=200))
def test_what_holds_no_secret_stays_as_it_is(data: bytes) -> None:
    """A log is read by programs too."""
    assert hiding("a-value-that-is-not-there").data(data) == data
    assert NOTHING.data(data) == data


@pytest.mark.parametrize("length", [12, 900, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5000])
@pytest.mark.parametrize("at", [0, 1, 7, 500])
def test_a_line_that_is_cut_in_the_middle_of_a_value_is_cut_before_it(length: int, at: int) -> None:
    """Lines are cut at 8 KiB, and half a key is a good part of it: what comes before the cut must show none of it."""
    value = "".join(chr(33 + (7 * i * i + i) % 90) for i in range(length)).encode()
    redactor = Redactor({"api_key": [value]})
    seen = redactor.data(b"x" * 300 + value[: at + 1])

    shown = seen[: len(seen) - redactor.begun(seen)]

    assert value[:12] not in shown
    assert shown.startswith(b"x" * 300)


def test_a_value_that_was_cut_apart_is_hidden_once_its_parts_are_together() -> None:
    """What is held back goes in front of what comes next."""
    redactor = hiding("abcdefghijklmnop")
    first = redactor.data(b"log abcdefgh")
    held = first[len(first) - redactor.begun(first) :]

    assert held == b"abcdefgh"
    assert redactor.data(held + b"ijklmnop rest") == b"[secret api_key] rest"


@given(data=st.binary(max_size=60), value=st.binary(min_size=8, max_size=40), cut=st.integers(0, 40))
def test_the_begin_that_is_held_back_is_the_longest_that_there_is(data: bytes, value: bytes, cut: int) -> None:
    """One byte less, and that byte is shown."""
    redactor = Redactor({"api_key": [value]})
    seen = redactor.data(data + value[:cut])
    forms = [form for form, _ in redactor._forms]

    expected = max((n for form in forms for n in range(1, len(form)) if seen.endswith(form[:n])), default=0)

    assert redactor.begun(seen) == expected


def test_text_that_is_no_utf_8_is_hidden_in_too() -> None:
    """A file name may hold half a surrogate pair, and a log line quotes it."""
    assert hiding("abcdefghijkl").text("\udc80 abcdefghijkl") == f"\udc80 {NAME}"
