"""What else may lie in a functions folder: told in one line each, while the functions beside it load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from folders import HANDLER, PROFILES, folder, read, single
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faas.registry.spec import read_functions

GARBAGE = bytes(range(256)) * 40
TEN_MEGABYTES = b"#" * 10 * 2**20


def entry(root: Path, name: str, **files: bytes | Callable[[Path], object]) -> Path:
    """A folder whose files have content, or are made."""
    made = folder(root, name)
    for file, content in files.items():
        path = made / file.replace("__", ".")
        path.unlink(missing_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
    return made


def linked(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def deep(path: Path) -> None:
    for _ in range(70):
        path /= "d"
    path.mkdir(parents=True)


def many(path: Path) -> None:
    path.mkdir()
    for number in range(2001):
        (path / str(number)).touch()


@pytest.mark.parametrize(
    ("files", "where", "word"),
    [
        ({"function__toml": GARBAGE}, "fn/function.toml: line 2: ", "no UTF-8"),
        ({"function__toml": b"\xff\xfea\0"}, "fn/function.toml: line 1: ", "no UTF-8"),
        ({"function__toml": TEN_MEGABYTES}, "fn/function.toml: ", "10 MiB; 1 MiB at most"),
        ({"function__toml": os.mkfifo}, "fn/function.toml: ", "no regular file"),
        ({"function__toml": Path.mkdir}, "fn/function.toml: ", "no regular file"),
        ({"function__toml": linked("function.toml")}, "fn/function.toml: ", "no regular file"),
        ({"function__toml": linked("/dev/zero")}, "fn/function.toml: ", "no regular file"),
        ({"function__toml": b"name = '../../etc'"}, "fn/function.toml: line 1: name: ", "is no name"),
        ({"function__toml": b"handler = '../x:handle'"}, "fn/function.toml: line 1: handler: ", "module:attribute"),
        ({"function__toml": b"handler = '/etc/passwd:handle'"}, "fn/function.toml: line 1: handler: ", "module:attribute"),
        ({"function__toml": b"runtime = '../standard'"}, "fn/function.toml: line 1: runtime: ", "no profile"),
        ({"function__toml": b"a = 1\r\nb = 2\r\n[x\r\n"}, "fn/function.toml: line 3: ", "no TOML"),
        ({"handler__py": GARBAGE}, "fn/handler.py: line 1: ", ""),
        ({"handler__py": TEN_MEGABYTES}, "fn/handler.py: ", "10 MiB; 1 MiB at most"),
        ({"handler__py": os.mkfifo}, "fn/handler.py: ", "no regular file"),
        ({"handler__py": Path.mkdir}, "fn/function.toml: handler: ", "no handler.py"),
        ({"handler__py": linked("/dev/zero")}, "fn/handler.py: ", "no regular file"),
        ({"handler__py": b"-" * 100_000 + b"1"}, "fn/handler.py: ", "nested too deeply"),
        ({"handler__py": b"a" + b".b" * 100_000}, "fn/handler.py: ", "recursion"),
        ({"data": linked("..")}, "fn/data: ", "no regular file"),
        ({"data": os.mkfifo}, "fn/data: ", "no regular file"),
        ({"data": b"\0" * (17 * 2**20)}, "fn: ", "more than 16 MiB"),
        ({"data": many}, "fn: ", "more than 2000 files"),
        ({"data": deep}, "fn: ", "64 deep"),
    ],
)
def test_what_cannot_be_read_is_said_of_that_function(tmp_path: Path, files: dict[str, bytes], where: str, word: str) -> None:
    """The function beside it serves."""
    entry(tmp_path, "fn", **files)
    folder(tmp_path, "good")
    single(tmp_path, "single")
    functions, (report,) = read(tmp_path)

    assert [function.spec.name for function in functions] == ["good", "single"]
    assert report.name == "fn"
    assert report.error.startswith(where), report.error
    assert word in report.error


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path.write_bytes(b"# /// faas\n# ///\n" + TEN_MEGABYTES), "10 MiB; 1 MiB at most"),
        (os.mkfifo, "no regular file"),
        (linked("fn.py"), "leads nowhere"),
        (linked("good.py"), "no regular file"),
        (linked("/dev/zero"), "no regular file"),
        (lambda path: path.write_bytes(b"# /// faas\n# ///\n" + GARBAGE), "line 3"),
    ],
)
def test_a_single_file_that_cannot_be_read_is_said(tmp_path: Path, make: Callable[[Path], object], word: str) -> None:
    """As a folder would be."""
    single(tmp_path, "good")
    make(tmp_path / "fn.py")
    functions, (report,) = read(tmp_path)

    assert [function.spec.name for function in functions] == ["good"]
    assert report.name == "fn"
    assert report.error.startswith("fn.py: ")
    assert word in report.error


def test_a_pipe_among_functions_makes_nobody_wait(tmp_path: Path) -> None:
    """Opening one would."""
    os.mkfifo(tmp_path / "pipe")
    folder(tmp_path, "good")
    functions, (report,) = read(tmp_path)

    assert len(functions) == 1
    assert "no regular file" in report.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    """With the file, and why."""
    (folder(tmp_path, "fn") / "handler.py").chmod(0)
    folder(tmp_path, "dark").chmod(0)
    functions, reports = read(tmp_path)

    assert functions == []
    assert [report.error for report in reports] == [
        "dark/function.toml: cannot be read: Permission denied",
        "fn/handler.py: cannot be read: Permission denied",
    ]


@pytest.mark.parametrize("name", [b"a\nb", b"\xff", b"\x1b[31m", "\u202e".encode()])
def test_a_name_that_is_no_text_is_told_in_one_line(tmp_path: Path, name: bytes) -> None:
    """It goes to a terminal and onto the bus."""
    at = os.fsencode(tmp_path)
    os.mkdir(os.path.join(at, name))
    for suffix, content in ((b".py", b"# /// faas\n# name = 'ok'\n# handler = 'x:handle'\n# ///\n"), (b"2.py", HANDLER.encode())):
        with open(os.path.join(at, name + suffix), "wb") as file:
            file.write(content)
    functions, invalid, hints = read_functions(tmp_path, PROFILES)

    assert (functions, hints) == ([], [])
    assert len(invalid) == 3
    assert all(text.isprintable() for report in invalid for text in (report.name, report.error))
    assert msgspec.json.encode(invalid).isascii()


NAMES = st.sampled_from(
    [b"function.toml", b"handler.py", b"one.py", b"one.py.lock", b"one.example_event.json", b"\xff.py", b"a\nb", b"x", b"assets"]
)
CONTENTS = st.one_of(
    st.sampled_from(
        [
            b"",
            HANDLER.encode(),
            b"# /// faas\n# ///\n" + HANDLER.encode(),
            b"dependencies = ['a']",
            b"[[mount]]\nsource='assets'\ntarget='a'",
        ]
    ),
    st.binary(max_size=20),
    st.sampled_from(["pipe", "..", ".", "loop", "/dev/zero", "nowhere"]),
)
TREES = st.recursive(CONTENTS, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)


def grow(at: bytes, tree: bytes | str | dict[bytes, object]) -> None:
    """Bytes are a file, text is a link (or a pipe), a table is a folder."""
    if isinstance(tree, dict):
        os.mkdir(at)
        for name, inner in tree.items():
            grow(os.path.join(at, name), inner)  # type: ignore[arg-type]
    elif tree == "pipe":
        os.mkfifo(at)
    elif isinstance(tree, str):
        os.symlink(os.path.basename(at) if tree == "loop" else tree, at)
    else:
        with open(at, "wb") as file:
            file.write(tree)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees=st.dictionaries(NAMES, TREES, max_size=4))
def test_no_tree_makes_reading_raise_or_wait(tmp_path_factory: pytest.TempPathFactory, trees: dict[bytes, object]) -> None:
    """Whatever lies there, whoever asks."""
    root = tmp_path_factory.mktemp("tree")
    for name, tree in trees.items():
        grow(os.path.join(os.fsencode(root), name), tree)  # type: ignore[arg-type]
    for locked in (True, False):
        functions, invalid, hints = read_functions(root, PROFILES, locked=locked)

        assert len(functions) + len(invalid) + len(hints) <= len(trees)
        assert all(text.isprintable() for text in [*(report.error for report in invalid), *hints])
        assert msgspec.json.encode((invalid, hints, [function.spec.name for function in functions]))
