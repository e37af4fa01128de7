"""Where a key stands: the line that an editor should go to, or none."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.registry.lines import line_of

TEXT = '''# a comment = 1
name = "x"  # [limits]
limits.timeout = "3s"

dependencies = [
    "a",
    "b = 2",
]
tags = { project = "a", team = """
name = 1
[limits]
""" }
"odd key" = 1

[[trigger]]
subject = "a"
[[trigger]]
delivery = "x"
'subject' = "b"
[retry]
on = ["crash"]
  [ scale ]
  keep_alive = 3
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 2),
        ("limits.timeout", 3),
        ("dependencies", 5),
        ("dependencies[1]", 5),
        ("tags.project", 9),
        ("odd key", 13),
        ("trigger[0].subject", 16),
        ("trigger[1].subject", 19),
        ("trigger[1].delivery", 18),
        ("trigger[0].delivery", 15),  # missing: its table
        ("retry", 20),
        ("retry.on[0]", 21),
        ("retry.backoff", 20),
        ("scale.keep_alive", 23),
        ("trigger", 0),  # two of them
        ("", 0),
        ("nosuch", 0),
        ("nosuch.key", 0),
        ("retry.on.deep.er", 0),
        ("trigger[7].subject", 0),
        ("'a\\nb'", 0),
    ],
)
def test_a_key_has_its_line(key: str, line: int) -> None:
    """And no line where there is none, or more than one."""
    assert line_of(TEXT, tomllib.loads(TEXT), key) == line


def test_line_ends_of_another_system_count_as_one() -> None:
    """An editor counts so."""
    text = "\r\n[limits]\r\ntimeout = 1\r\n"

    assert line_of(text, tomllib.loads(text), "limits.timeout") == 3


@given(
    before=st.lists(
        st.sampled_from(["", "# x", "[a]", "b.c = 1", "d = '''\n\n'''", "[[e]]", "f = [\n1]", '"g" = 2']), unique=True, max_size=8
    )
)
def test_a_line_is_right_or_none(before: list[str]) -> None:
    """A wrong line sends its reader astray."""
    text = "\n".join([*before, "[z]", "wanted = 1", ""])
    right = text.split("\n").index("wanted = 1") + 1

    assert line_of(text, tomllib.loads(text), "z.wanted") == right
