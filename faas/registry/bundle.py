"""The bytes of a function as they lie on the disk: a folder, or a single file with its declaration in a comment block.

Finds and bounds them and says where each is; knows no key of a declaration and no Python.
"""

from __future__ import annotations

import codecs
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from faas.errors import SpecInvalid
from faas.model import SourceFile
from faas.registry.tree import files_below, read_regular
from faas.units import format_size

SPEC_FILE = "function.toml"
EXAMPLE_FILE = "example_event.json"
LOCK_FILE = "requirements.lock"
SPEC_LIMIT_BYTES = 2**20
FOLDER_LIMIT_BYTES = 16 * 2**20
FILES_LIMIT = 2000
_BLOCK_OPENS = re.compile(rb"# /// faas\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """Where a function is declared, and its words as TOML.

    Of a single file, `text` has an empty line for each line before the block, so that a line has the number that it has in the file.
    """

    file: str  # as errors name it: "hello/function.toml", "hello.py"
    text: bytes
    name: str  # where it says none
    handler: str  # where it says none
    entry: Path  # the folder, or the file

    @property
    def is_single_file(self) -> bool:
        return self.file.endswith(".py")


@dataclass(frozen=True, slots=True)
class NoFunction:
    """What else may lie among functions. `source` is that of a Python file without a block, whose author may have meant one."""

    source: bytes = b""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What belongs to a function beside its declaration. `files` are its code; `lock` and `example` are "" where there is none."""

    files: tuple[SourceFile, ...]
    lock: bytes
    example: bytes


def find_declaration(entry: Path) -> Declaration | NoFunction:
    """What an entry of the functions folder declares. Raises SpecInvalid, OSError."""
    if not entry.name.isprintable():
        raise SpecInvalid(entry.name, "", "its name is no printable text; rename it")
    if entry.is_dir():
        file = f"{entry.name}/{SPEC_FILE}"
        try:
            text = read_regular(entry / SPEC_FILE, file, SPEC_LIMIT_BYTES)
        except FileNotFoundError:
            raise SpecInvalid(file, "", "is missing; an empty file is a valid function") from None
        return Declaration(file=file, text=text, name=entry.name, handler="handler:handle", entry=entry)
    if entry.is_symlink() and not entry.exists():
        raise SpecInvalid(entry.name, "", "is a link that leads nowhere; remove it")
    if entry.suffix != ".py" and stat.S_ISREG(entry.stat().st_mode):
        return NoFunction()
    source = read_regular(entry, entry.name, SPEC_LIMIT_BYTES)
    declared = declared_in(entry.name, source)
    if declared is None:
        return NoFunction(source)
    return Declaration(file=entry.name, text=declared, name=entry.stem, handler=f"{entry.stem}:handle", entry=entry)


def declared_in(file: str, source: bytes) -> bytes | None:
    """The TOML of a `# /// faas` block with its lines where the file has them; None where there is no block. Raises SpecInvalid.

    The form is that of PEP 723: lines that are `#` or begin with `# `, up to `# ///`.
    """
    lines = source.removeprefix(codecs.BOM_UTF8).splitlines()
    opened = [number for number, line in enumerate(lines) if _BLOCK_OPENS.fullmatch(line)]
    if not opened:
        return None
    if len(opened) > 1:
        raise SpecInvalid(file, "", "a second `# /// faas` block; a file is one function and has one", line=opened[1] + 1)
    toml = [b""] * (opened[0] + 1)
    for number, line in enumerate(lines[len(toml) :], len(toml) + 1):
        if line.rstrip() == b"# ///":
            return b"\n".join([*toml, b""])
        if not line.startswith(b"#"):
            break
        if line.rstrip() != b"#" and not line.startswith(b"# "):
            raise SpecInvalid(file, "", "begin each line of the block with `# `: a # and one space", line=number)
        toml.append(line[2:])
    raise SpecInvalid(file, "", "the `# /// faas` block is not closed; end it with a line `# ///`", line=opened[0] + 1)


def read_bundle(declaration: Declaration, mounts: Collection[str]) -> Bundle:
    """All that the node keeps of a function; folders that are mounted stay out. Raises SpecInvalid, OSError."""
    entry = declaration.entry
    if declaration.is_single_file:
        source = SourceFile(entry.name, read_regular(entry, entry.name, SPEC_LIMIT_BYTES))
        lock, example = lock_path(declaration), entry.with_name(f"{entry.stem}.{EXAMPLE_FILE}")
        return Bundle((source,), _beside(lock), _beside(example))

    def outside(inside: str) -> bool:
        name = inside.rpartition("/")[2]
        return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc") or inside in mounts

    files: dict[str, bytes] = {}
    left_bytes = FOLDER_LIMIT_BYTES
    for inside, path in files_below(entry, label=entry.name, limit=FILES_LIMIT, skip=outside):
        label = f"{entry.name}/{inside}"
        if not inside.isprintable():
            raise SpecInvalid(label, "", "its name is no printable text; rename it")
        if path.lstat().st_size > left_bytes:
            raise SpecInvalid(
                entry.name, "", f"has more than {format_size(FOLDER_LIMIT_BYTES)}; keep data in a folder that [[mount]] names"
            )
        files[inside] = read_regular(path, label, left_bytes)
        left_bytes -= len(files[inside])
    beside = (SPEC_FILE, EXAMPLE_FILE, LOCK_FILE)
    code = tuple(SourceFile(path, data) for path, data in files.items() if path not in beside)
    return Bundle(code, files.get(LOCK_FILE, b""), files.get(EXAMPLE_FILE, b""))


def lock_path(declaration: Declaration) -> Path:
    """Where the lock of a function's dependencies lies, or will."""
    entry = declaration.entry
    return entry.with_name(f"{entry.name}.lock") if declaration.is_single_file else entry / LOCK_FILE


def _beside(path: Path) -> bytes:
    """A file that may be there."""
    try:
        return read_regular(path, path.name, FOLDER_LIMIT_BYTES)
    except FileNotFoundError:
        return b""
