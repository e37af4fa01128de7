"""Which Python an environment is made from: the node's own, or a pythonX.Y on PATH. Asks interpreters what they are; changes none."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from pathlib import Path

import msgspec

from faas.errors import EnvironmentFailed

ANSWER_WITHIN_S = 20.0
"""A version manager's shim may hang or prompt; a cold disk needs a few seconds."""

# The base executable, not the executable: a shim or a virtual environment answers with the interpreter behind it.
_QUESTION = (
    "import json, platform, sys; "
    "print(json.dumps({'executable': getattr(sys, '_base_executable', sys.executable), "
    "'version': '%d.%d' % sys.version_info[:2], 'platform': sys.platform + '-' + platform.machine()}))"
)


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """A real interpreter: `executable` absolute and no shim, `version` "3.11", `platform` like "linux-x86_64"."""

    executable: str
    version: str
    platform: str


def own_interpreter() -> Interpreter:
    """The interpreter behind the one that runs this node."""
    return Interpreter(
        executable=getattr(sys, "_base_executable", None) or sys.executable,
        version=f"{sys.version_info[0]}.{sys.version_info[1]}",
        platform=f"{sys.platform}-{platform.machine()}",
    )


async def find_interpreter(profile: str, python: str) -> Interpreter:
    """The interpreter that a profile asks for: `python` "3.12", or "" for the node's own. Raises EnvironmentFailed, which says what to install."""
    own = own_interpreter()
    if python in ("", own.version):
        return own
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = Path(folder or ".") / f"python{python}"
        if os.access(candidate, os.X_OK) and candidate.is_file():
            found = await _ask(str(candidate))
            if found is not None and found.version == python:
                return found
    raise EnvironmentFailed(
        profile,
        f"no python{python} on PATH that runs; install Python {python}, or leave `python` out of profile.toml to use the node's own {own.version}",
    )


async def _ask(executable: str) -> Interpreter | None:
    """What an executable says it is; None where it is no Python that runs (a shim without a version behind it)."""
    try:
        process = await asyncio.create_subprocess_exec(
            executable,
            "-I",
            "-c",
            _QUESTION,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            output, _ = await process.communicate()
        return msgspec.json.decode(output, type=Interpreter)
    except (TimeoutError, msgspec.DecodeError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
