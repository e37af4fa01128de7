"""What the pages show to be copied is what the program takes: the configuration of a node, and declarations of functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.config import load_file
from faas.environments.profile import load_profiles, shipped_runtimes
from faas.registry.spec import read_functions

ROOT = Path(__file__).resolve().parents[2]


def blocks(document: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each block of TOML on a page."""
    text = (ROOT / document).read_text()
    for found in re.finditer(r"^```toml\n(.*?)^```$", text, re.S | re.M):
        yield text.count("\n", 0, found.start()) + 1, found[1]


DECLARATIONS = {
    f"{document}:{line}": text
    for document in ("README.md", "functions/README.md", "functions/events.md")
    for line, text in blocks(document)
    if "faas.toml:" not in text and "/data" not in text  # not of a function alone, or of a folder that is not here
}


def test_the_configuration_that_operators_read_is_one_that_a_node_takes(tmp_path: Path) -> None:
    """Whoever copies it must not meet an unknown key."""
    [(_, text)] = [(line, text) for line, text in blocks("deploy/README.md") if text.startswith("[node]")]
    (tmp_path / "faas.toml").write_text(text)

    assert load_file(tmp_path / "faas.toml", {}).bus.ack_wait_s == 20.0


@pytest.mark.parametrize("text", DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_declaration_on_a_page_is_one_of_a_function(tmp_path: Path, text: str) -> None:
    """A key that was renamed since is found here, and not by its readers."""
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "handler.py").write_text("def handle(event): ...\n")
    (tmp_path / "shown" / "function.toml").write_text(text)
    profiles, _ = load_profiles(shipped_runtimes())
    reading = read_functions(tmp_path, profiles)

    assert [report.error for report in reading.invalid] == []
    assert [function.spec.name for function in reading.functions] == ["shown"]
