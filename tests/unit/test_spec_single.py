"""A function in a single file, and what is told to whoever nearly wrote one."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import HANDLER, PROFILES, folder, only_error, read, single
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import SpecInvalid
from faas.registry.bundle import declared_in
from faas.registry.spec import lock_file, read_functions


def test_a_single_file_is_a_function(tmp_path: Path) -> None:
    """The shortest way to one: its name and its handler follow from the file's name."""
    single(tmp_path, "hello", '[[trigger]]\nsubject = "a.b"\n\n[limits]\ntimeout = "3s"')
    ((function,), invalid) = read(tmp_path)

    assert invalid == []
    assert (function.spec.name, function.spec.handler, function.file) == ("hello", "hello:handle", "hello.py")
    assert function.spec.triggers[0].subject == "a.b"
    assert function.spec.limits.timeout_s == 3
    assert [file.path for file in function.files] == ["hello.py"]
    assert function.example == b""


def test_an_empty_block_is_a_function_with_the_defaults(tmp_path: Path) -> None:
    """As an empty function.toml is."""
    single(tmp_path, "hello")

    assert len(read(tmp_path)[0]) == 1


def test_example_and_lock_lie_beside_a_single_file(tmp_path: Path) -> None:
    """They are no code, and the lock counts into the version."""
    file = single(tmp_path, "hello", 'dependencies = ["pillow"]')
    (tmp_path / "hello.example_event.json").write_text("{}")
    lock = tmp_path / "hello.py.lock"
    ((unlocked,), _, _) = read_functions(tmp_path, PROFILES, locked=False)
    missing = only_error(tmp_path)
    lock.write_text("pillow==11.0\n")
    ((function,), _) = read(tmp_path)

    assert lock_file(tmp_path, unlocked) == lock
    assert missing == "hello.py: line 2: dependencies: not locked yet; type: faas lock hello"
    assert (function.lock, function.example) == (b"pillow==11.0\n", b"{}")
    assert [file.path for file in function.files] == [file.name]
    assert function.version != unlocked.version


def test_the_lock_of_a_folder_lies_in_it(tmp_path: Path) -> None:
    """Where `faas lock` writes it is where it is read."""
    made = folder(tmp_path, "fn", 'name = "other"')
    ((function,), _) = read(tmp_path)

    assert lock_file(tmp_path, function) == made / "requirements.lock"


def test_an_example_is_no_part_of_the_version(tmp_path: Path) -> None:
    """A version is what runs."""
    made = folder(tmp_path, "fn")
    ((before,), _) = read(tmp_path)
    (made / "example_event.json").write_text("{}")
    ((after,), _) = read(tmp_path)

    assert after.example == b"{}"
    assert [file.path for file in after.files] == ["handler.py"]
    assert before.version == after.version


@pytest.mark.parametrize("stem", ["my-fn", "x-1", "json"])
def test_a_stem_that_is_a_name_is_a_module(tmp_path: Path, stem: str) -> None:
    """Names of functions have hyphens, which modules that are imported by statement have not."""
    single(tmp_path, stem)
    ((function,), _) = read(tmp_path)

    assert (function.spec.name, function.spec.handler) == (stem, f"{stem}:handle")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('# /// faas\n# nmae = "x"\n# ///\n', 2, "did you mean name"),
        ("#!/usr/bin/env python\n# hello\n\n# /// faas\n#\n# [limits]\n# timeoutt = 1\n# ///\n", 7, "limits.timeoutt"),
        ("# /// faas\n# [limits\n# ///\n", 2, "is no TOML"),
        ("# /// faas\n# a = '\x00'\n# ///\n", 2, "is no TOML"),
        ("# /// faas\n# tags = {}\n", 1, "not closed"),
        ("# /// faas\n# tags = {}\nimport os\n# ///\n", 1, "not closed"),
        ("# /// faas\n#tags = {}\n# ///\n", 2, "one space"),
        ("# /// faas\n#\ttags = {}\n# ///\n", 2, "one space"),
        ("# /// faas\n# ///\n\n# /// faas\n# ///\n", 4, "second"),
        ("# /// faas\n# ///\n# /// faas\n# ///\n", 3, "second"),
        ("# /// faas\n# ///\ndef handle(event:\n", 3, "never closed"),
        ("# /// faas\n# handler = 'other:handle'\n# ///\n", 2, "write fn:handle"),
        ("# /// faas\n# handler = 'fn'\n# ///\n", 2, "module:attribute, like fn:handle"),
        ("# /// faas\n# [[mount]]\n# source = 'assets'\n# target = 'a'\n# ///\n", 3, "must be absolute"),
        ("# /// faas\n# [budget]\n# ///\n", 2, "budget: not supported yet"),
    ],
)
def test_what_is_wrong_has_the_line_that_it_has_in_the_file(tmp_path: Path, text: str, line: int, word: str) -> None:
    """An editor goes there."""
    (tmp_path / "fn.py").write_text(text + HANDLER)
    error = only_error(tmp_path)

    assert error.startswith(f"fn.py: line {line}: "), error
    assert word in error
    assert "\n" not in error


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf# /// faas\n# tags = { a = 'b' }\n# ///\n",
        b"# /// faas\r\n# tags = { a = 'b' }\r\n# ///\r\n",
        b"# /// faas  \n#   tags\t=\t{ a = 'b' }\t\n# /// \n",
        b"# /// faas\n# tags = { a = 'b' }\n# ///\n# /// script\n# dependencies = []\n# ///\n",
        b"# /// script\n# dependencies = []\n# ///\n\n# /// faas\n# tags = { a = 'b' }\n# ///\n# and a comment\n",
        b'"""What it does."""\n\n# /// faas\n# tags = { a = """\n# b""" }\n# ///\n',
    ],
)
def test_what_editors_make_of_a_block_is_read(tmp_path: Path, text: bytes) -> None:
    """Line ends, marks and blanks that nobody sees, and blocks of other tools beside it."""
    (tmp_path / "fn.py").write_bytes(text + HANDLER.encode())
    ((function,), invalid) = read(tmp_path)

    assert invalid == []
    assert function.spec.tags == {"a": "b"}


@given(before=st.text("ab#/ \n", max_size=30), toml=st.lists(st.text("a=1 /\t#", max_size=8), max_size=5))
def test_a_block_is_read_back_where_it_was_written(before: str, toml: list[str]) -> None:
    """Whatever stands before it: the same lines, at the same numbers."""
    lines = [f"# {line}" if line else "#" for line in toml]
    source = "\n".join(["", before, "# /// faas", *lines, "# ///", ""]).encode()
    closes = next((n for n, line in enumerate(lines) if line.rstrip() == "# ///"), len(lines))
    declared = declared_in("fn.py", source)

    assert declared is not None
    at = source.splitlines().index(b"# /// faas") + 1
    assert declared.split(b"\n")[: at + closes] == [*[b""] * at, *(line.encode() for line in toml[:closes])]


@given(st.binary(max_size=100) | st.text("# /fas\n\r", max_size=60).map(str.encode))
def test_no_text_makes_looking_for_a_block_fail(source: bytes) -> None:
    """A block, none, or a sentence."""
    line = 1
    declared: bytes | None = None
    try:
        declared = declared_in("fn.py", source)
    except SpecInvalid as error:
        line = error.line

    assert line > 0
    assert declared is None or declared.endswith(b"\n")


def test_a_python_file_without_a_block_is_no_function_and_is_told(tmp_path: Path) -> None:
    """Whoever forgot the block looks for it for an hour; whoever keeps a tool there is left alone."""
    (tmp_path / "forgot.py").write_text(HANDLER)
    (tmp_path / "later.py").write_text("async def handle(event):\n    return 1\n")
    (tmp_path / "tool.py").write_text("def main():\n    pass\n")
    (tmp_path / "garbage.py").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "__init__.py").write_text(HANDLER)
    (tmp_path / ".hidden.py").write_text(HANDLER)
    functions, invalid, hints = read_functions(tmp_path, PROFILES)

    assert (functions, invalid) == ([], [])
    assert [hint.partition(":")[0] for hint in hints] == ["forgot.py", "garbage.py", "later.py"]
    assert "`# /// faas`" in hints[0]


def test_a_name_taken_in_both_forms_names_both(tmp_path: Path) -> None:
    """A folder made of a file, and the file forgotten."""
    folder(tmp_path, "same")
    single(tmp_path, "same")
    functions, (report,) = read(tmp_path)

    assert [function.file for function in functions] == ["same/function.toml"]
    assert "same.py" in report.error
    assert "same/function.toml" in report.error
