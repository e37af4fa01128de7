"""Every profile on the interpreter of the node: what is looked at first, and what is said where something is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from node import command, end, running, write_function

from faas.environments.current import CurrentInterpreter, ask
from faas.environments.interpreter import own_interpreter
from faas.errors import EnvironmentFailed
from faas.model import FunctionSpec, FunctionVersion, RuntimeProfile

HERE = CurrentInterpreter()


def function(*dependencies: str) -> FunctionVersion:
    return FunctionVersion(spec=FunctionSpec(name="f", runtime="any", dependencies=dependencies), version="v1", files=())


async def problem(*dependencies: str) -> str:
    one = function(*dependencies)
    return (await HERE.problems([one], {"any": RuntimeProfile(name="any")})).get(one.key, "")


async def test_a_profile_runs_on_the_nodes_own_interpreter_and_its_digest_is_of_what_is_installed() -> None:
    """Usage records say what an attempt ran on; without a lock that is what the interpreter holds."""
    one = await HERE.ensure(RuntimeProfile(name="any", preload=("json", "msgspec")))
    other = await HERE.ensure(RuntimeProfile(name="any", preload=("json",)))

    assert one.python == sys.executable
    assert (one.overlay, len(one.digest)) == ("", 64)
    assert one.digest != other.digest
    assert one == await HERE.ensure(RuntimeProfile(name="any", preload=("json", "msgspec")))
    assert ("msgspec", msgspec.__version__) in (await ask("any", (), ())).installed


async def test_a_module_that_does_not_import_is_named_with_its_profile() -> None:
    """Else every event of the profile would wait for a template that dies."""
    with pytest.raises(EnvironmentFailed, match=r"environment of ai: the module nosuchmodule does not import in .*No module named"):
        await HERE.ensure(RuntimeProfile(name="ai", preload=("json", "nosuchmodule")))


async def test_a_profile_for_another_python_is_refused() -> None:
    """There is one interpreter, and it is not that."""
    with pytest.raises(EnvironmentFailed, match=rf"asks for Python 3\.99, and .* is {own_interpreter().version}"):
        await HERE.ensure(RuntimeProfile(name="any", python="3.99"))


async def test_a_preload_that_ends_the_interpreter_is_an_error_of_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that finds no driver may abort the process."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no driver >&2\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    with pytest.raises(EnvironmentFailed, match=r"ended with code 7 on importing msgspec, json: no driver"):
        await HERE.ensure(RuntimeProfile(name="any", preload=("json",)))


@pytest.mark.parametrize(
    ("dependency", "missing"),
    [
        ("msgspec>=0.19", ""),
        ("msgspec>99", f"msgspec>99: msgspec {msgspec.__version__} is installed"),
        ("faas-has-no-such-package", "faas-has-no-such-package: faas-has-no-such-package is not installed"),
        ("faas-has-no-such-package ; python_version < '3'", ""),
        ("msgspec[faas-has-no-such-extra]>=0.19", ""),
        ("rich[jupyter]", "rich[jupyter]: ipywidgets is not installed"),
    ],
)
async def test_dependencies_must_be_satisfied_by_what_is_installed(dependency: str, missing: str) -> None:
    """Nothing is installed in this mode, so what is not there will never be."""
    found = await problem(dependency)

    assert found.startswith(missing) if missing else not found


async def test_a_node_on_its_own_interpreter_builds_nothing(tmp_path: Path) -> None:
    """For images that hold it all: no uv, no network, no second copy of torch."""
    write_function(tmp_path / "functions", "fits", "import msgspec\ndef handle(event):\n    return event\n", 'dependencies = ["msgspec"]\n')
    write_function(
        tmp_path / "functions", "lacks", "def handle(event):\n    return event\n", 'dependencies = ["faas-has-no-such-package"]\n'
    )
    for name in ("fits", "lacks"):
        (tmp_path / "functions" / name / "requirements.lock").write_text("# what is installed counts, not this\n")
    state = tmp_path / "state"
    async with running(tmp_path / "functions", state, "--environments", "current") as node:
        assert end(await node.request("fits", b"21")) == ("succeeded", "")
        assert node.info["functions"] == ["fits"]
        code, out, _ = await command("functions", "lacks", "--json", "--state", str(state))

    assert code == 0
    assert "lacks/function.toml: dependencies: faas-has-no-such-package: faas-has-no-such-package is not installed in" in out
    assert not (state / "environments").exists()


async def test_the_demo_runs_on_the_nodes_own_interpreter_too() -> None:
    """The first thing that somebody tries in an image."""
    code, out, _ = await command("demo", "--only", "hello", "--environments", "current", "--json")

    assert (code, json.loads(out)[0]["outcome"]) == (0, "succeeded")
