"""`faas new`: a function folder that runs as it is, copied from a template. Knows the files of a function, and no node."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from pathlib import Path
from shlex import quote
from typing import Annotated

from cyclopts import Parameter

from faas.cli.options import Json, print_json, readable
from faas.errors import ConfigInvalid
from faas.model import NAME_PATTERN

TEMPLATES = ("plain", "class", "stream", "async", "torch", "schedule", "webhook")
PLACEHOLDER = "FUNCTION"
"""In a template's files: the name of the function."""

_MAKE_SECRET = "mkdir -p -m 700 secrets && openssl rand -hex 32 | install -m 600 /dev/stdin secrets/github_webhook"


def new(
    name: Annotated[str, Parameter(help="Of the function: a-z, then a-z, 0-9 and -.")],
    *,
    template: Annotated[str, Parameter(help=f"{', '.join(TEMPLATES)}.")] = "plain",
    functions: Annotated[Path, Parameter(help="Folder of the functions; made where there is none.")] = Path("functions"),
    as_json: Json = False,
) -> int:
    """Make a function folder that runs as it is."""
    if template not in TEMPLATES:
        raise ConfigInvalid(f"--template {template} is unknown; use one of {', '.join(TEMPLATES)}")
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigInvalid(f"{name!r} is no name for a function; begin with a-z, then a-z, 0-9 and -, at most 63, like thumb-2")
    folder = readable(functions, "--functions") / name
    files = _write(folder, template)
    commands = _next(folder, name, functions)
    if as_json:
        document = {"name": name, "template": template, "folder": str(folder), "files": files}
        print_json({**document, "next": [command for command, _ in commands]})
        return 0
    print(f"{folder}: {', '.join(files)}\n\nNext:")
    width = max(len(command) for command, _ in commands)
    for command, what in commands:
        print(f"  {command.ljust(width)}  {what}")
    return 0


def _write(folder: Path, template: str) -> list[str]:
    """Copy the template's files with the function's name in them; the folder is whole or absent. Raises ConfigInvalid."""
    from faas.environments.profile import shipped_templates

    single = folder.with_name(f"{folder.name}.py")
    for taken in (folder, single):
        if taken.exists() or taken.is_symlink():
            raise ConfigInvalid(f"{taken} is there already; choose another name, or another folder with --functions DIR")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(parents=True)
        names = []
        for source in sorted(file for file in (shipped_templates() / template).iterdir() if file.is_file()):
            text = source.read_text(encoding="utf-8").replace(PLACEHOLDER, folder.name)
            (unfinished / source.name).write_text(text, encoding="utf-8")
            names.append(source.name)
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigInvalid(f"{folder} cannot be written: {error.strerror}; choose another folder with --functions DIR") from error
    return names


def _next(folder: Path, name: str, functions: Path) -> list[tuple[str, str]]:
    """(command, what it does) of what an author types next."""
    option = "" if functions == Path("functions") else f" --functions {quote(str(functions))}"
    event = json.loads((folder / "example_event.json").read_bytes())
    data = quote(json.dumps(event["data"]))
    test = (f"python -m pytest {quote(str(folder))}", "run its test, without a node (needs pytest)")
    example = (f"faas demo --only {name}{option}", "run its example event on a node of its own")
    if event["type"].startswith("com.github."):
        return [
            test,
            example,
            (_MAKE_SECRET, "its secret; give GitHub the same"),
            (f"FAAS_SECRETS__FOLDER=secrets faas up{option}", f"run a node that takes POST /hooks/default/{name}"),
        ]
    by_schedule = event["type"] == "faas.schedule"
    return [
        test,
        example,
        (f"faas up{option}", "run a node; in another terminal:"),
        (f"faas invoke {name} {data}", "what it will return when it is due")
        if by_schedule
        else (f"faas publish {event['subject']} {data} --wait", "an event, and what came of it"),
    ]
