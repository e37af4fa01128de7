"""The handler without a node: a plain class, loaded and called as a worker does."""

from collections.abc import Iterator

import pytest
from handler import Dictionary, Matches, Query

import faas

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


@pytest.fixture
def dictionary() -> Iterator[Dictionary]:
    loaded = Dictionary()
    loaded.load(CONTEXT)
    yield loaded
    loaded.close()


def test_a_word_that_is_there_is_found(dictionary: Dictionary) -> None:
    assert dictionary.handle(Query(word="Grape", at_most=1), CONTEXT) == Matches(exact=True, nearest=["grape"])


def test_a_word_that_is_nearly_there_is_named(dictionary: Dictionary) -> None:
    assert dictionary.handle(Query(word="bananna"), CONTEXT) == Matches(exact=False, nearest=["banana"])


def test_an_event_that_makes_no_sense_is_rejected(dictionary: Dictionary) -> None:
    with pytest.raises(faas.Reject):
        dictionary.handle(Query(word="fig", at_most=0), CONTEXT)
