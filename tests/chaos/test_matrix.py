"""The table of README.md beside this file: every row that is due is in it, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
DUE = {f"F{number:02}" for number in range(1, 35)} - {"F02", "F13", "F15", "F17", "F25", "F26", "F30", "F31"}


def test_every_fault_that_is_due_names_a_test_that_is_there() -> None:
    """A renamed test would leave a row that nobody tries, and nobody would see it."""
    rows = re.findall(r"^\| ((?:F\d\d(?:, )?)+) \|.*?`([\w.]+)::(\w+)`", (HERE / "README.md").read_text(), re.MULTILINE)
    missing = [test for _, file, test in rows if f"def {test}(" not in (HERE / file).read_text()]

    assert missing == []
    assert {fault for faults, _, _ in rows for fault in faults.split(", ")} == DUE
