"""What a request says in its headers, read: the forms that an idempotency key comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.gateway.incoming import key_of
from faas.gateway.problems import Refusal


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("abc", "abc"),
        (' "abc" ', "abc"),
        ('"a b"', "a b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ("8e03978e-40d5", "8e03978e-40d5"),
        ("x" * 255, "x" * 255),
    ],
)
def test_a_key_is_the_same_with_and_without_its_quotes(header: str, key: str) -> None:
    """The draft writes a string of structured fields; most clients write what is inside."""
    assert key_of(header) == key


@pytest.mark.parametrize("header", ["", " ", '""', '"', '"open', 'a"b', r'"a\n"', '" a"', "x" * 256, '"abc"; v=1'])
def test_what_is_no_key_is_refused(header: str) -> None:
    """Two readers that understand one header as two keys would run its request twice."""
    with pytest.raises(Refusal, match="Idempotency-Key"):
        key_of(header)


@given(header=st.text(max_size=300) | st.text('"\\\\ab ;=', max_size=12))
def test_whatever_a_header_says_is_one_key_or_refused(header: str) -> None:
    """It goes into an identity and into headers of the bus: what is taken is printable, bounded and has one form."""
    key = read(header)
    if isinstance(key, Refusal):
        assert (key.status, key.code) == (400, "event_invalid")
        return
    assert key.isascii()
    assert key.isprintable()
    assert key == key.strip()
    assert 1 <= len(key) <= 255
    assert key_of('"' + key.replace("\\", r"\\").replace('"', r"\"") + '"') == key


def read(header: str) -> str | Refusal:
    try:
        return key_of(header)
    except Refusal as refusal:
        return refusal
