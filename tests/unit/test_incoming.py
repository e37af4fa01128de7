"""What a request says in its headers, read: the forms that an idempotency key comes in."""

from __future__ import annotations

import pytest

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
