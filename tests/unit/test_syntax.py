"""Parsing source in a process that does other things: what CPython 3.11 cannot do at the same time must not happen at the same time."""

from __future__ import annotations

import ast
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faas.syntax import parse

SOURCE = Path(ast.__file__).read_text()


class Logged:
    """Garbage whose end parses something, as formatting a traceback with its anchors does."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        ast.parse("(a + b) * c")


@pytest.fixture
def eager_collector() -> object:
    """A collection falls into every parse that allows one."""
    before = gc.get_threshold()
    gc.set_threshold(50)
    yield
    gc.set_threshold(*before)


def test_a_traceback_that_is_formatted_in_the_middle_breaks_no_parse(eager_collector: None) -> None:
    """A task of which nobody took the exception is logged when it is collected, wherever that is."""
    for _ in range(5):
        Logged()
        assert parse(SOURCE).body


def test_threads_that_parse_at_once_break_one_another_in_nothing() -> None:
    """A node that takes up many bundles reads them side by side."""
    with ThreadPoolExecutor(8) as threads:
        assert all(tree.body for tree in threads.map(parse, [SOURCE] * 32))


def test_whatever_is_parsed_collecting_goes_on_afterwards() -> None:
    """Also where it was no Python."""
    with pytest.raises(SyntaxError):
        parse("def")

    assert gc.isenabled()
