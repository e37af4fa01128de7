"""Sources that are read in several threads at once, as a node does with the bundles of many functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from folders import folder, read


class Cycle:
    """Garbage whose end runs Python code, in whose middle another thread may be given its turn."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        sum(range(50))


@pytest.fixture(autouse=True)
def busy() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_functions_are_read_in_several_threads_at_once(tmp_path: Path) -> None:
    """CPython 3.11 raises SystemError where two syntax trees are made at the same time, and no node has expected that."""
    code = "def handle(event):\n    return [event" + ", (event, {event: event})" * 500 + "]\n"
    folder(tmp_path, "fn", "", code)

    def once(_: int) -> bool:
        for _ in range(300):
            Cycle()
        functions, invalid = read(tmp_path)
        return len(functions) == 1 and invalid == []

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(once, range(24)))
