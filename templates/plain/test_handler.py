"""The handler without a node: a plain function, called with a typed event."""

from handler import Text, Words, handle

import faas

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


def test_the_longest_words_come_first() -> None:
    assert handle(Text(text="a quick brown fox", longest=2), CONTEXT) == Words(count=4, longest=["brown", "quick"])


def test_no_text_has_no_words() -> None:
    assert handle(Text(text=""), CONTEXT) == Words(count=0, longest=[])
