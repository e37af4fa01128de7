"""The handler without a node: a generator, whose items are what is sent."""

import pytest
from handler import Prompt, handle

import faas

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


def test_every_line_is_an_item() -> None:
    assert list(handle(Prompt(prompt="the quick brown fox", width=10), CONTEXT)) == ["the quick\n", "brown fox\n"]


def test_an_event_that_makes_no_sense_is_rejected() -> None:
    with pytest.raises(faas.Reject):
        list(handle(Prompt(prompt="x", width=0), CONTEXT))
