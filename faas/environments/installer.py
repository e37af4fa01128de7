"""Runs uv, and finds the folders of wheels that this machine offers. Knows how a uv child lives and dies; knows no environment and no lock.

A child gets no `UV_*`, `PIP_*`, `PYTHON*` or active virtual environment from the node, so that it acts on nothing but what its
arguments name, and it dies with the node.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from faas.environments.interpreter import Interpreter
from faas.environments.lockfile import Pin
from faas.errors import EnvironmentFailed

TORCH_INDEX = ("--torch-backend", "cpu")
"""Sends torch's family, and nothing else, to its own index. uv fails on any index that does not answer, so only where no folder has the wheel."""

TAIL_LINES = 12
_CLEARED = ("UV_", "PIP_", "PYTHON")
_CLEARED_EXACTLY = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "__PYVENV_LAUNCHER__")

# Runs between the node and uv instead of a preexec_fn: that would run Python in the fork of a process with threads, which may deadlock.
# prctl(PR_SET_PDEATHSIG, SIGKILL); the parent is asked for again, since it may have died before the call.
_DIE_WITH_NODE = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class InstallerFailed(Exception):
    """uv ended with an error, or could not be started. `output` is all of its last lines; `signal` what killed it, 0 where nothing did."""

    def __init__(self, output: str, *, signal: int = 0) -> None:
        super().__init__(output)
        self.output, self.signal = output, signal


def find_uv(profile: str) -> str:
    """The uv program: of the package that is installed beside this one, else on PATH. Raises EnvironmentFailed, which says what to type."""
    try:
        import uv

        return os.fspath(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        pass
    found = shutil.which("uv")
    if found is None:
        raise EnvironmentFailed(profile, 'uv, which builds environments, is not installed; type: pip install "faas[local]"')
    return os.path.abspath(found)


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What a uv child sees of the node's environment variables."""
    return {key: value for key, value in environ.items() if not key.startswith(_CLEARED) and key not in _CLEARED_EXACTLY}


async def run_uv(uv: str, arguments: Sequence[str], *, folder: Path, on_line: Callable[[str], None] | None = None) -> None:
    """Run uv in `folder`, passing on its messages line by line. Raises InstallerFailed. Cancelled: uv and what it started are killed first.

    Start it from the event loop's thread: the kernel ends the child when the thread that spawned it ends.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-c",
            _DIE_WITH_NODE,
            str(os.getpid()),
            uv,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=child_environ(os.environ),
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise InstallerFailed(f"{uv} cannot be started: {error}") from error
    try:
        tail = await _read_lines(process, on_line)
        if await process.wait() != 0:
            said = "\n".join(tail) or f"uv ended with code {process.returncode} and said nothing"
            raise InstallerFailed(said, signal=max(0, -(process.returncode or 0)))
    finally:
        if process.returncode is None:
            _kill_group(process.pid)
            await process.wait()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


async def _read_lines(process: asyncio.subprocess.Process, on_line: Callable[[str], None] | None) -> list[str]:
    """Everything until the child's stderr closes; returns the last lines. Chunks, not readline: a line may be of any length."""
    assert process.stderr is not None  # asked for above
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    rest = ""
    while chunk := await process.stderr.read(8192):
        *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
        rest = rest[-8192:]
        for line in lines:
            tail.append(line.rstrip())
            if on_line is not None:
                on_line(line.rstrip())
    if rest:
        tail.append(rest.rstrip())
    return list(tail)


# ---------------------------------------------------------------- folders of wheels


async def wheel_folders(environ: Mapping[str, str]) -> list[Path]:
    """The folders of wheels that pip is set up with: `PIP_FIND_LINKS`, else every find-links of pip's configuration; those that exist."""
    given = environ.get("PIP_FIND_LINKS")
    words = given.split() if given else _find_links_of(await _pip_configuration())
    folders = dict.fromkeys(Path(word.removeprefix("file://")) for word in words)
    return [folder for folder in folders if folder.is_absolute() and folder.is_dir()]


async def _pip_configuration() -> str:
    """What `pip config list` prints; "" where the node's Python has no pip."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "pip", "config", "list"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
        return output.decode("utf-8", "replace")
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _find_links_of(configuration: str) -> list[str]:
    """The words of every `<section>.find-links='...'` line; pip prints the value as a Python literal."""
    words: list[str] = []
    for value in re.findall(r"^[^=\s]*\.find-links=(.*)$", configuration, re.MULTILINE):
        try:
            words += str(ast.literal_eval(value)).split()
        except (ValueError, SyntaxError):
            words += value.strip("'\"").split()
    return words


def has_wheel(folders: Sequence[Path], pin: Pin, interpreter: Interpreter) -> bool:
    """Whether one of the folders holds a wheel of exactly this version for this interpreter."""
    return any(fits(file.name, pin, interpreter) for folder in folders for file in folder.glob("*.whl"))


def fits(file_name: str, pin: Pin, interpreter: Interpreter) -> bool:
    """Whether a wheel's file name is that of the pin, for this interpreter. Source: the binary distribution format, name-version-python-abi-platform.whl."""
    parts = file_name.removesuffix(".whl").split("-")
    if len(parts) not in (5, 6):
        return False
    python, abi, platform = parts[-3:]
    if plain_name(parts[0]) != plain_name(pin.name) or parts[1].replace("_", "-") != pin.version.replace("_", "-"):
        return False
    system, _, machine = interpreter.platform.partition("-")
    own_tag = "cp" + interpreter.version.replace(".", "")
    right_python = own_tag in python.split(".") or "py3" in python.split(".") or abi == "abi3"
    system_words = {"linux": ("linux",), "darwin": ("macosx",)}.get(system, (system,))
    right_platform = platform == "any" or (
        any(word in platform for word in system_words) and "musl" not in platform and (machine in platform or "universal2" in platform)
    )
    return right_python and right_platform


def plain_name(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Sources(msgspec.Struct, frozen=True):
    """Where wheels come from besides the package index, as arguments of uv; and the pins that no folder of this machine has."""

    arguments: tuple[str, ...] = ()
    absent: tuple[Pin, ...] = ()

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Sources:
        """These folders of wheels."""
        return cls(tuple(word for folder in folders for word in ("--find-links", str(folder))))


async def find_sources(pins: Sequence[Pin], interpreter: Interpreter) -> Sources:
    """Where to get the pins that carry a local version, like 2.13.0+cpu, which no package index has.

    Folders of wheels where they hold every one of them, else torch's own index. Such pins are Linux builds: elsewhere nothing is added.
    """
    local = [pin for pin in pins if "+" in pin.version]
    if not local or not interpreter.platform.startswith("linux"):
        return Sources()
    folders = await wheel_folders(os.environ)
    absent = tuple(pin for pin in local if not has_wheel(folders, pin, interpreter))
    if absent:
        return Sources(TORCH_INDEX, absent)
    return Sources.of(folders)
