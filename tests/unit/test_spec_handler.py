"""What a handler's source may be, as far as its syntax tells."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from folders import PROFILES, folder, only_error, read

from faas.registry.spec import read_functions


@pytest.mark.parametrize(
    ("handler", "word"),
    [
        ("def handle(event:\n", "line 1"),
        ("x = 1\n\n\ndef handle(event)\n    return 1\n", "line 4"),
        ("def run(event):\n    return 1\n", "has no handle"),
        ("class handle:\n    def load(self, ctx):\n        pass\n", "no handle(self"),
        ("\0", "handler.py"),
        ("(" * 5000, "handler.py"),
    ],
)
def test_a_handler_that_cannot_be_is_told_by_its_syntax_alone(tmp_path: Path, handler: str, word: str) -> None:
    """The node does not import it to find out."""
    folder(tmp_path, "fn", "", handler)
    error = only_error(tmp_path)

    assert error.startswith("fn/handler.py")
    assert word in error


def test_reading_imports_nothing(tmp_path: Path) -> None:
    """User code runs in sandboxes only."""
    mark = tmp_path / "imported"
    folder(tmp_path, "fn", "", f"open({str(mark)!r}, 'w')\nimport nosuchthing\ndef handle(event):\n    return 1\n")
    before = set(sys.modules)

    assert len(read(tmp_path)[0]) == 1
    assert not mark.exists()
    assert {name for name in set(sys.modules) - before if "handler" in name} == set()


@pytest.mark.parametrize(
    "handler",
    [
        "class Model:\n    def load(self, ctx):\n        pass\n    def handle(self, event, ctx):\n        return 1\n",
        "import os\nif os.name:\n    def Model(event):\n        return 1\n",
        "def make():\n    return lambda event: 1\nModel = make()\n",
        "from json import dumps as Model\n",
        "async def Model(event):\n    return 1\n",
        "def Model(event):\n    yield 1\n",
        "async def Model(event):\n    yield 1\n",
        "class Model:\n    async def load(self, ctx):\n        pass\n    async def handle(self, event, ctx):\n        yield 1\n",
        "def Model(event):\n    def inner():\n        yield 1\n    return list(inner())\n",
        "from base import Base\nclass Model(Base):\n    pass\n",
        "class Model:\n    handle = print\n",
        "try:\n    import nosuch\nexcept ImportError:\n    def Model(event):\n        return 1\n",
        "if 1:\n    pass\n" + "elif 1:\n    pass\n" * 2500 + "def Model(event):\n    return 1\n",
    ],
)
def test_a_handler_may_be_a_class_or_come_from_anywhere(tmp_path: Path, handler: str) -> None:
    """What its name stands for shows when it is loaded."""
    folder(tmp_path, "fn", 'handler = "handler:Model"', handler)

    assert len(read(tmp_path)[0]) == 1


def test_a_syntax_of_a_newer_python_is_left_to_the_worker(tmp_path: Path) -> None:
    """The profile may ask for one that the node does not run on, and only that one can tell."""
    folder(tmp_path, "fn", "", "this is a statement of some later version\n")
    refused = only_error(tmp_path)
    newer = {"standard": msgspec.structs.replace(PROFILES["standard"], python="3.99")}

    assert refused.startswith("fn/handler.py: line 1: ")
    assert len(read_functions(tmp_path, newer).functions) == 1
