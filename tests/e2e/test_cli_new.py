"""`faas new`: what it makes runs, passes its own test and is typed; what it cannot make is refused in one sentence."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from deliveries import by_github
from node import command, running

from faas.cli.new import TEMPLATES

ROOT = Path(__file__).resolve().parents[2]
NEEDS_TORCH = "torch"
TEMPLATES_HERE = [template for template in TEMPLATES if template != NEEDS_TORCH]
"""What the interpreter of the tests can run."""


async def make(name: str, template: str, functions: Path) -> dict[str, object]:
    """What `faas new --json` says of a new function."""
    code, out, err = await command("new", name, "--template", template, "--functions", str(functions), "--json")
    assert (code, err) == (0, "")
    made: dict[str, object] = json.loads(out)
    return made


async def python(folder: Path, *arguments: str) -> str:
    """What a Python program says that has to succeed in a folder."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "error", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("template", TEMPLATES_HERE)
async def test_a_new_function_passes_its_own_test_without_a_node(tmp_path: Path, template: str) -> None:
    """The first thing that an author types must be green."""
    await make("my-first", template, tmp_path)

    said = await python(tmp_path / "my-first", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", ".", ".")

    assert " passed" in said
    assert "FUNCTION" not in "".join(file.read_text() for file in (tmp_path / "my-first").glob("*.*"))


async def test_a_new_function_of_this_checkout_is_tested_with_pytest_alone(tmp_path: Path) -> None:
    """README says so, and the options of our own tests are for plugins that its author need not have."""
    await make("mine", "plain", tmp_path)
    plugins = [option for name in ("asyncio", "timeout", "hypothesispytest", "cacheprovider") for option in ("-p", f"no:{name}")]

    said = await python(tmp_path, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", ".", *plugins, "mine")

    assert " passed" in said


@pytest.mark.timeout(200)
async def test_new_functions_are_typed(tmp_path: Path) -> None:
    """What people start from is what they go on with."""
    for template in TEMPLATES_HERE:
        await make(template, template, tmp_path)
        await python(
            tmp_path / template, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / ".types"), "handler.py", "test_handler.py"
        )


@pytest.mark.timeout(60)
async def test_new_functions_run_on_a_node_by_what_is_printed_next(tmp_path: Path) -> None:
    """The printed command is the second thing that an author types."""
    made = [await make(f"a-{template}", template, tmp_path / "functions") for template in TEMPLATES_HERE if template != "webhook"]
    async with running(tmp_path / "functions", tmp_path / "state"):
        for function in made:
            assert isinstance(function["next"], list)
            publish = str(function["next"][-1]).removeprefix("faas ")
            process = await asyncio.create_subprocess_shell(
                f"{sys.executable} -m faas {publish} --state {tmp_path / 'state'}", stdout=subprocess.PIPE, env=dict(os.environ)
            )
            out, _ = await process.communicate()

            by_clock = function["template"] == "schedule"
            assert out.decode().startswith('{"since":' if by_clock else f"{function['name']}: succeeded: "), out


@pytest.mark.timeout(30)
async def test_a_new_webhook_takes_what_github_sends_with_the_secret_that_is_printed_next(tmp_path: Path) -> None:
    """Nobody has a GitHub at hand that could show him: it works the first time, or he does not know which end is wrong."""
    made = await make("reviews", "webhook", tmp_path / "functions")
    assert isinstance(made["next"], list)
    await asyncio.to_thread(subprocess.run, made["next"][2], shell=True, cwd=tmp_path, check=True)
    secret = (tmp_path / "secrets" / "github_webhook").read_text().strip()
    body = json.dumps(json.loads((tmp_path / "functions" / "reviews" / "example_event.json").read_text())["data"]).encode()
    async with running(tmp_path / "functions", tmp_path / "state", environ={"FAAS_SECRETS__FOLDER": str(tmp_path / "secrets")}) as node:
        await node.watch()
        async with aiohttp.ClientSession() as session:
            await session.post(f"{node.info['http']}/hooks/default/reviews", data=body, headers=by_github(secret, body, "first"))
        outcome = await node.outcome("first")

    assert json.loads(outcome.data)["title"] == "Amazing new feature"


async def test_what_comes_next_is_told_to_people(tmp_path: Path) -> None:
    """A folder alone teaches nothing."""
    code, out, _ = await command("new", "thumb", "--functions", str(tmp_path))

    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["python", "faas", "faas", "faas"]


@pytest.mark.parametrize("name", ["Thumb", "a b", "../x", "", "-x", "a" * 64, "a/b", "ä"])
async def test_a_name_that_no_function_can_have_is_refused(tmp_path: Path, name: str) -> None:
    """A name is a token of a subject and a folder; the sentence says what one is."""
    code, _, err = await command("new", "--functions", str(tmp_path), "--", name)

    assert code == 2
    assert "begin with a-z" in err
    assert list(tmp_path.iterdir()) == []


async def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    """A folder, and a single file of that name, is somebody's work."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two.py").write_text("")
    for name in ("one", "two"):
        code, _, err = await command("new", name, "--functions", str(tmp_path))

        assert code == 2
        assert "is there already" in err
    assert list((tmp_path / "one").iterdir()) == []


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With what to type instead, and nothing half written."""
    (tmp_path / "file").write_text("")
    code, _, err = await command("new", "one", "--functions", str(tmp_path / "file"))

    assert code == 2
    assert "--functions DIR" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("template", "words"), [("hook", "unknown"), ("plane", "unknown")])
async def test_a_template_that_is_not_there_is_refused(tmp_path: Path, template: str, words: str) -> None:
    """By name, so that nobody takes a plain function for a webhook."""
    code, _, err = await command("new", "one", "--template", template, "--functions", str(tmp_path), "--json")

    assert code == 2
    assert words in json.loads(err)["detail"]
    assert list(tmp_path.iterdir()) == []
