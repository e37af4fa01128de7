"""`faas demo` as its users type it, on functions of its own: what it publishes and how it shows what comes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from node import command, write_function

from faas.environments.profile import shipped_runtimes

pytestmark = pytest.mark.timeout(60)  # it builds the small environment

SHOW = """
import faas
def handle(event: faas.Event):
    return {"size": len(event.data), "type": event.datacontenttype, **event.extensions}
"""
BINARY = "import faas\ndef handle(event):\n    return faas.Result(b'\\x89\\0' * 1024, content_type='image/png')\n"


def write(root: Path, name: str, code: str, example: dict[str, Any]) -> None:
    write_function(root, name, code)
    (root / name / "example_event.json").write_text(json.dumps(example))


async def demo(functions: Path, *options: str) -> tuple[int, str]:
    code, out, err = await command("demo", "--functions", str(functions), "--runtimes", str(shipped_runtimes()), *options, wait_s=50)
    assert out, err
    return code, out


async def test_an_example_of_bytes_arrives_as_the_bytes_that_it_names(tmp_path: Path) -> None:
    """A picture in an example is base64 in its file, and a picture when it reaches the handler; its attributes are written as CloudEvents does."""
    event = {"datacontenttype": "image/png", "data_base64": base64.b64encode(b"\x89PNG\0").decode(), "width": 320, "grey": True}
    write(tmp_path, "show", SHOW, event)

    code, out = await demo(tmp_path, "--json")

    (row,) = json.loads(out)
    assert (code, json.loads(row["result"])) == (0, {"size": 5, "type": "image/png", "width": "320", "grey": "true"})


async def test_a_binary_result_is_shown_by_its_kind_and_size(tmp_path: Path) -> None:
    """Its bytes would be noise in a table, and control a terminal."""
    write(tmp_path, "binary", BINARY, {"data": 1})
    write(tmp_path, "hello", "def handle(event):\n    return 'hi'\n", {"data": 1})

    code, out = await demo(tmp_path)

    first, second = out.splitlines()[1:]
    assert code == 0
    assert first.startswith("hello ")
    assert "image/png, 2 KiB" in second


async def test_a_function_without_an_example_is_left_out(tmp_path: Path) -> None:
    """It has nothing to be shown with; an empty event that it refuses would be a failure of nobody's."""
    write(tmp_path, "hello", "def handle(event):\n    return 'hi'\n", {"data": 1})
    write_function(tmp_path, "plain", "def handle(event: dict):\n    return event\n")

    code, out = await demo(tmp_path)
    alone, _, err = await command("demo", "--functions", str(tmp_path), "--only", "plain", wait_s=50)

    assert (code, len(out.splitlines())) == (0, 2)
    assert alone == 2
    assert "plain has no example_event.json" in err
