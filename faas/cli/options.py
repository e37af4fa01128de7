"""Options and payloads that several verbs share, and how results are printed."""

from __future__ import annotations

import json
import mimetypes
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from faas.errors import ConfigInvalid

if TYPE_CHECKING:
    from rich.console import Console

State = Annotated[Path, Parameter(name="--state", help="State folder of the node.")]
Name = Annotated[str, Parameter(help="The function, as `faas functions` lists it.")]
Id = Annotated[str, Parameter(help="The invocation's id, as `faas runs` and `faas invoke --async` print it.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Data = Annotated[str | None, Parameter(help="The payload: text, @FILE, or - for standard input.", allow_leading_hyphen=True)]

LIKE_AN_OPTION = re.compile(r"--[a-z][a-z-]*(=.*)?", re.DOTALL)
DEFAULT_STATE = Path(".faas")
WIDTH = 160
"""Of a table where it goes into a file or a pipe."""


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Where:
    """Which bus a verb speaks to."""

    nats: Annotated[
        str | None, Parameter(help="URL of the bus, those of a cluster joined by commas; else FAAS_NATS, else the node of --state.")
    ] = None
    state: Annotated[Path, Parameter(help="State folder of the node.")] = DEFAULT_STATE
    nkey: Annotated[Path | None, Parameter(help="Seed file to show the bus, where it knows users by nkeys; else FAAS_NKEY.")] = None


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Folders:
    """Where functions and profiles are read from."""

    functions: Annotated[Path | None, Parameter(help="Folder of the functions; default functions.")] = None
    runtimes: Annotated[Path | None, Parameter(help="Folder of the profiles; default runtimes, else those that come with faas.")] = None


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Payload:
    """What an event brings along."""

    header: Annotated[tuple[str, ...], Parameter(help="K=V, may be given several times.", negative="")] = ()
    id: Annotated[str | None, Parameter(help="The event's id: the same one again is the same event.")] = None


def payload(data: str | None) -> tuple[bytes, str]:
    """(body, content type): JSON where it parses as JSON, else text; a file by its extension. Raises ConfigInvalid."""
    if data is None:
        return b"", ""
    if LIKE_AN_OPTION.fullmatch(data) and "--" not in sys.argv:
        raise ConfigInvalid(f"{data[:80]!r} is no option of this verb; data that begins like one stands behind --")
    if data == "-":
        if sys.stdin is None:
            raise ConfigInvalid("standard input is closed, and - reads it; give the payload itself, or @FILE")
        return _guessed(sys.stdin.buffer.read())
    if data.startswith("@"):
        try:
            if stat.S_ISCHR(os.stat(data[1:]).st_mode) and data[1:] != "/dev/stdin":
                raise ConfigInvalid(f"{data[1:]} is a device, which never ends; give a file, or - for standard input")
            body = Path(data[1:]).read_bytes()
        except OSError as error:
            raise ConfigInvalid(f"{data[1:]} cannot be read: {error.strerror}") from error
        return body, mimetypes.guess_type(data[1:])[0] or "application/octet-stream"
    return _guessed(os.fsencode(data))


def _guessed(body: bytes) -> tuple[bytes, str]:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return body, "text/plain"
    return body, "application/json"


def headers(pairs: tuple[str, ...], content_type: str) -> dict[str, str]:
    """`--header K=V` as a dict, with the payload's content type where none was given. Raises ConfigInvalid."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip() or any(ch.isspace() or ch == ":" for ch in name.strip()):
            raise ConfigInvalid(f"--header {pair!r}: write K=V, like --header ce-type=picture")
        found[name.strip()] = value.strip()
    if content_type and "content-type" not in {name.lower() for name in found}:
        found["Content-Type"] = content_type
    return found


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a command line says --json, read where it could not be parsed too; what stands behind `--` is data."""
    return "--json" in arguments[: arguments.index("--") if "--" in arguments else None]


def say_error(code: str, detail: str, *, json: bool) -> None:
    """An error on standard error: a sentence for people, or one line of JSON for programs."""
    print(json_line({"error": code, "detail": detail}) if json else f"faas: {harmless(detail)}", file=sys.stderr)


def harmless(text: str) -> str:
    """Text of a function's, for a terminal: what would move its cursor or set its title stands as an escape."""
    return "".join(ch if ch.isprintable() or ch in "\n\t" else ch.encode("unicode_escape").decode() for ch in text)


def readable(path: Path, option: str) -> Path:
    """The path as it is. Raises ConfigInvalid where it is no UTF-8 text: it goes into configuration files and messages."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigInvalid(f"{option} {str(path)!r} is no UTF-8 text; choose another folder") from None
    return path


def console() -> Console:
    """Where tables go. What functions are called and return is text, never markup; what is no terminal gets room for whole lines."""
    from rich.console import Console

    out = Console(markup=False, emoji=False, highlight=False)
    return out if out.is_terminal else Console(markup=False, emoji=False, highlight=False, width=WIDTH)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def json_line(value: object) -> str:
    """One JSON document on one line; what is no UTF-8 stands as escapes."""
    return json.dumps(value)


def print_body(body: bytes) -> None:
    """A result as it is, and where it is text the end of its line: a file that is written this way is the result, byte for byte."""
    sys.stdout.buffer.write(body if body.endswith(b"\n") or b"\0" in body else body + b"\n")
    sys.stdout.buffer.flush()


def print_item(item: object, *, as_json: bool) -> None:
    """One item of a stream, at once: text and bytes as they are, anything else as a line of JSON; with `as_json` all as lines of JSON."""
    if isinstance(item, bytes) and not as_json:
        sys.stdout.buffer.write(item)
    elif isinstance(item, str) and not as_json:
        sys.stdout.write(item)
    else:
        print(json.dumps(item.decode("utf-8", "replace") if isinstance(item, bytes) else item, ensure_ascii=False))
    sys.stdout.flush()
