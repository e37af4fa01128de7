"""The example functions under two type checkers, as their author would run them: in the folder, with the environment that it runs in.

torch, pillow and the models' packages are in no environment of these tests, so the checkers are pointed at the interpreters and
the folders that a node would use. They see `faas` as an installed package, by its `py.typed`. Each folder is checked on its own,
since every function has a module named `handler`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from node import PROJECT

from faas.environments.build import Builder
from faas.environments.profile import load_profiles, shipped_functions, shipped_runtimes
from faas.model import Environment
from faas.registry.spec import read_functions

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]  # the first one builds, and mypy reads all of torch once

FUNCTIONS = ("classify", "embed", "hello", "resize", "speech", "tokens", "train")
NOT_A_METHOD = "import faas\n\n\ndef handle(event: int, ctx: faas.Context) -> int:\n    ctx.no_such_method()\n    return str(event)\n"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of torch, kept from one function to the next."""
    return tmp_path_factory.mktemp("mypy")


async def environment_of(builder: Builder, name: str) -> Environment:
    """What a node would run the function with."""
    profiles, _ = load_profiles(shipped_runtimes())
    (function,) = (f for f in read_functions(shipped_functions(), profiles).functions if f.spec.name == name)
    return await builder.ensure_overlay(function, profiles[function.spec.runtime])


async def run(folder: Path, environment: Environment, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a checker in a folder; the packages that a worker would have on its path are on that of the environment's interpreter."""
    path = os.pathsep.join(filter(None, (str(PROJECT), environment.overlay)))
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", *command], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


async def mypy(folder: Path, environment: Environment, cache: Path) -> str:
    """What mypy says in strict mode; "" where it has nothing to say. Of torch's own functions some are untyped, which is not the author's fault."""
    strict = ("--strict", "--untyped-calls-exclude=torch", "--config-file=", "--no-error-summary", f"--cache-dir={cache}")
    done = await run(folder, environment, "mypy", *strict, "--python-executable", environment.python, ".")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout + done.stderr


async def pyright(folder: Path, environment: Environment) -> str:
    """What pyright says in its standard mode; "" where it has nothing to say."""
    done = await run(folder, environment, "pyright", "--outputjson", "--pythonpath", environment.python, ".")
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        raise AssertionError(f"pyright did not run: {done.stdout[-1000:]}{done.stderr[-1000:]}") from None
    return "".join(f"{Path(at['file']).name}:{at['range']['start']['line'] + 1}: {at['message']}\n" for at in found)


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_an_example_function_is_clean_under_mypy(builder: Builder, cache: Path, function: str) -> None:
    """Who copies it into a project with types starts without a single complaint."""
    assert await mypy(shipped_functions() / function, await environment_of(builder, function), cache) == ""


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_an_example_function_is_clean_under_pyright(builder: Builder, function: str) -> None:
    """It is what many editors show while one types."""
    assert await pyright(shipped_functions() / function, await environment_of(builder, function)) == ""


async def test_both_checkers_see_a_mistake_with_the_context(builder: Builder, cache: Path, tmp_path: Path) -> None:
    """Were `faas` unknown to them, everything that it has would be of any type, and nothing wrong."""
    folder = tmp_path / "mistaken"
    shutil.copytree(shipped_functions() / "hello", folder)
    (folder / "handler.py").write_text(NOT_A_METHOD)
    environment = await environment_of(builder, "hello")

    for said in (await mypy(folder, environment, cache), await pyright(folder, environment)):
        assert "no_such_method" in said
        assert "handler.py:6" in said
