"""What the command line imports before its first line: seconds that everybody waits for, every time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from faas.cli.verbs import HELP, name_of, overview

HEAVY = ("aiohttp", "asyncio", "cyclopts", "msgspec", "nats", "rich", "structlog", "uvloop")
OF_VERBS = ("aiohttp", "nats", "rich", "structlog", "uvloop")


def imported(program: str, heavy: tuple[str, ...]) -> str:
    """Which of these an interpreter has imported after a program."""
    told = f"{program}\nimport sys\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.strip()


def test_the_overview_imports_nothing_that_takes_time() -> None:
    """It is the first thing that anybody sees of this package."""
    assert imported("from faas.cli.verbs import overview\noverview()\nimport faas.cli.main", HEAVY) == ""


def test_no_verb_imports_the_bus_or_tables_before_it_needs_them() -> None:
    """`faas invoke --help` needs neither; each takes longer than all the rest."""
    modules = sorted({target.partition(":")[0] for target in HELP})

    assert imported("\n".join(f"import {module}" for module in modules), OF_VERBS) == ""


@pytest.mark.parametrize("text", HELP.values(), ids=HELP)
def test_every_help_begins_with_a_sentence_and_ends_with_an_example(text: str) -> None:
    """The first is all that the overview shows, the last what people copy."""
    first, *_, last = text.split("\n\n")

    assert first.endswith(".")
    assert "\n" not in first
    assert last.startswith("Example: faas ")
    assert all("\n" not in paragraph for paragraph in text.split("\n\n"))  # wrapped where the terminal ends, not where ours did


def test_the_overview_names_every_verb_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there does not exist."""
    monkeypatch.setenv("COLUMNS", "60")
    text = overview()

    assert all(f"  {name_of(target)} " in text for target in HELP)
    assert max(map(len, text.splitlines())) <= 60
