"""Every profile on the interpreter that runs the node, for images that already hold what is needed. Builds and installs nothing; looks first.

What a build would have made certain is asked of the interpreter: that what is preloaded imports there, and that the
dependencies of functions are installed. Knows no lock and no uv.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from faas.environments import probe
from faas.environments.build import Progress
from faas.environments.installer import child_environ
from faas.environments.interpreter import own_interpreter
from faas.environments.lockfile import WORKER_REQUIREMENTS
from faas.errors import EnvironmentFailed
from faas.model import Environment, FunctionVersion, RuntimeProfile

ANSWER_WITHIN_S = 300.0
"""An import of torch from a cold network disk takes minutes."""
WORKER_MODULES = ("msgspec",)
ADVICE = "install it there, or leave `--environments current` out"

_FORMAT = 1  # raise it when more is counted into the digest


class Answer(msgspec.Struct, frozen=True):
    """What `probe` says of an interpreter: a sentence for each module and requirement that is wrong, and (name, version) of what is installed."""

    modules: Mapping[str, str]
    requirements: Mapping[str, str]
    installed: tuple[tuple[str, str], ...]


class CurrentInterpreter:
    """Takes the place of a Builder: its environments are the node's own interpreter. An async context manager like that one."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """It holds nothing."""

    async def ensure(self, profile: RuntimeProfile, progress: Progress = lambda _: None) -> Environment:
        """The interpreter, once all that the profile preloads imports there. Raises EnvironmentFailed, which names profile and module."""
        own = own_interpreter()
        if profile.python not in ("", own.version):
            raise EnvironmentFailed(
                profile.name,
                f"it asks for Python {profile.python}, and {sys.executable} is {own.version}; {ADVICE.removeprefix('install it there, or ')}",
            )
        answer = await ask(profile.name, (*WORKER_MODULES, *profile.preload), WORKER_REQUIREMENTS)
        for module, problem in answer.modules.items():
            raise EnvironmentFailed(profile.name, f"the module {module} does not import in {sys.executable} ({problem}); {ADVICE}")
        for requirement, problem in answer.requirements.items():
            raise EnvironmentFailed(profile.name, f"{requirement}, which workers need: {problem} in {sys.executable}; {ADVICE}")
        parts = (_FORMAT, profile.version, profile.python, profile.preload, profile.warmup, own.version, own.platform, answer.installed)
        digest = hashlib.sha256(b"current" + msgspec.json.encode(parts)).hexdigest()
        return Environment(profile=profile.name, digest=digest, python=sys.executable)

    async def ensure_overlay(self, function: FunctionVersion, profile: RuntimeProfile, progress: Progress = lambda _: None) -> Environment:
        """The same: `problems` has said whether the function's dependencies are there."""
        return await self.ensure(profile, progress)

    async def problems(self, functions: Sequence[FunctionVersion], profiles: Mapping[str, RuntimeProfile]) -> dict[tuple[str, str], str]:
        """By (tenant, function): which of its dependencies is not installed, as a sentence. Raises EnvironmentFailed."""
        wanted = sorted({requirement for function in functions for requirement in function.spec.dependencies})
        unsatisfied = (await ask("current", (), wanted)).requirements if wanted else {}
        found = {}
        for function in functions:
            missing = [f"{one}: {unsatisfied[one]} in {sys.executable}" for one in function.spec.dependencies if one in unsatisfied]
            if missing:
                found[function.key] = f"{'; '.join(missing)}; {ADVICE}"
        return found

    def warnings(self, profiles: Sequence[RuntimeProfile]) -> list[str]:
        """None: no lock has a part in it."""
        return []


async def ask(name: str, modules: Sequence[str], requirements: Sequence[str]) -> Answer:
    """Let the node's interpreter look at itself in a process of its own, as a template would see it. Raises EnvironmentFailed of `name`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", str(Path(probe.__file__))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**child_environ(os.environ), "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            out, said = await process.communicate(msgspec.json.encode({"modules": modules, "requirements": requirements}))
        return msgspec.json.decode(out, type=Answer)
    except TimeoutError:
        raise EnvironmentFailed(
            name, f"{', '.join(modules)} did not import in {sys.executable} within {ANSWER_WITHIN_S:.0f} s; {ADVICE}"
        ) from None
    except msgspec.DecodeError:
        last = said.decode("utf-8", "replace").strip()[-500:]
        raise EnvironmentFailed(
            name, f"{sys.executable} ended with code {process.returncode} on importing {', '.join(modules)}: {last}"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
