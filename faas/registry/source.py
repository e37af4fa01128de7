"""Whether a handler's source has what its spec names, by its syntax alone: nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping

from faas.errors import SpecInvalid
from faas.registry.bundle import Declaration
from faas.syntax import parse
from faas.units import format_size

PARSED_LIMIT_BYTES = 2**20
"""A syntax tree takes up to a thousand times its source: 951 MiB and 3 s for this much."""


def check_handler(declaration: Declaration, handler: str, files: Mapping[str, bytes], *, python: str = "") -> None:
    """Raises SpecInvalid where `module:attribute` names no function or class with `handle` in these files.

    `python` is the version that the profile asks for: a syntax that is newer than this interpreter is not judged here.
    """
    module, colon, attribute = handler.partition(":")
    own = declaration.is_single_file and module == declaration.entry.stem  # importlib takes what is no identifier
    if not colon or not attribute.isidentifier() or not (own or all(part.isidentifier() for part in module.split("."))):
        raise SpecInvalid(declaration.file, "handler", f"{handler[:80]!r}: write module:attribute, like {declaration.handler}")
    path = next((p for p in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py") if p in files), None)
    if path is None:
        missing = f"there is no {module.replace('.', '/')}.py in the folder"
        raise SpecInvalid(
            declaration.file,
            "handler",
            f"a single file has one module; write {declaration.handler}" if declaration.is_single_file else missing,
        )
    file = path if declaration.is_single_file else f"{declaration.entry.name}/{path}"
    if len(files[path]) > PARSED_LIMIT_BYTES:
        raise SpecInvalid(file, "", f"has {format_size(len(files[path]))}; {format_size(PARSED_LIMIT_BYTES)} at most where the handler is")
    try:
        tree = parse(files[path])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, SyntaxError) and _is_newer(python):
            return  # its worker says so when it loads, where it is wrong there as well
        told = error.msg if isinstance(error, SyntaxError) else f"cannot be parsed: {str(error) or 'nested too deeply'}"
        line = (error.lineno if isinstance(error, SyntaxError) else 0) or _line_of_zero(files[path])
        raise SpecInvalid(file, "", told, line=line) from error
    definition = _find(tree.body, attribute)
    if isinstance(definition, ast.ClassDef):
        at, inherits, body = definition.lineno, bool(definition.bases), definition.body
        definition = _find(body, "handle")
        if definition is None and not inherits and not _assigned(body, "handle"):
            raise SpecInvalid(file, "", f"the class {attribute} has no handle(self, event, ctx)", line=at)
    elif definition is None and not _assigned(tree.body, attribute):
        raise SpecInvalid(
            file, "", f'has no {attribute}; write `def {attribute}(event, ctx)`, or name another with handler = "module:attribute"'
        )


def _is_newer(python: str) -> bool:
    parts = python.split(".")
    return all(part.isdecimal() for part in parts) and tuple(map(int, parts)) > sys.version_info[: len(parts)]


def may_be_meant(source: bytes) -> str:
    """Why a Python file without a block may be meant as a function, and what to type then; "" where it hardly is."""
    try:
        meant = _find(parse(source).body, "handle") is not None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "is no function and no Python that can be parsed"
    return "has a handle and is no function: it has no block of `# /// faas` and `# ///`" if meant else ""


def _line_of_zero(source: bytes) -> int:
    """Of the first zero byte, for which Python gives no line; 0 where there is none."""
    before, zero, _ = source.partition(b"\0")
    return before.count(b"\n") + 1 if zero else 0


def _find(body: list[ast.stmt], name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    """The last definition of the name, also inside `if` and `try`."""
    found = None
    for node in _statements(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            found = node
    return found


def _assigned(body: list[ast.stmt], name: str) -> bool:
    """Whether the name comes from an assignment or an import: what it is shows when it is loaded."""
    for node in _statements(body):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Import | ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return True
        if any(isinstance(inner, ast.Name) and inner.id == name for target in targets for inner in ast.walk(target)):
            return True
    return False


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of the module and of its `if`, `try` and `with` blocks, in order; without recursion, since an `elif` is one level more."""
    todo = body[::-1]
    while todo:
        node = todo.pop()
        yield node
        inner: list[ast.stmt] = []
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner += node.body
        if isinstance(node, ast.Try):
            inner += [statement for handler in node.handlers for statement in handler.body]
        if isinstance(node, ast.If | ast.Try):
            inner += node.orelse
        if isinstance(node, ast.Try):
            inner += node.finalbody
        todo += inner[::-1]
