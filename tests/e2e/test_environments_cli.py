"""`faas lock`, `faas build` and `faas env` as people type them, on folders of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from node import command, end, running, write_function

from faas.environments.build import Builder, digest_of
from faas.environments.filelock import open_lock, try_lock
from faas.environments.profile import load_profile, shipped_runtimes

HANDLER = "def handle(event):\n    return event\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A profile `standard`, and a function `thumb` with a dependency and no lock."""
    shutil.copytree(shipped_runtimes() / "standard", tmp_path / "runtimes" / "standard")
    write_function(tmp_path / "functions", "thumb", HANDLER, 'dependencies = ["iniconfig==2.0.0"]\n')
    write_function(tmp_path / "functions", "plain", HANDLER)
    return tmp_path


async def faas(root: Path, *words: str) -> tuple[int, str, str]:
    state = () if words[0] == "lock" else ("--state", str(root / "state"))
    return await command(*words, "--functions", str(root / "functions"), "--runtimes", str(root / "runtimes"), *state)


async def listed(root: Path, *words: str) -> list[dict[str, Any]]:
    code, out, err = await faas(root, "env", *words, "--json")
    assert (code, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


async def test_a_functions_lock_lands_in_its_folder(root: Path) -> None:
    """Where it travels with the source, and where a node looks for it."""
    code, out, _ = await faas(root, "lock", "thumb")

    assert code == 0
    assert out.startswith("thumb: 1 package beside those of standard")
    assert "iniconfig==2.0.0" in (root / "functions" / "thumb" / "requirements.lock").read_text()


async def test_the_lock_of_a_single_file_lies_beside_it(root: Path) -> None:
    """It has no folder."""
    (root / "functions" / "one.py").write_text('# /// faas\n# dependencies = ["iniconfig==2.1.0"]\n# ///\n' + HANDLER)

    code, _, err = await faas(root, "lock", "one", "--json")

    assert (code, err) == (0, "")
    assert "iniconfig==2.1.0" in (root / "functions" / "one.py.lock").read_text()


async def test_a_name_that_is_a_profile_and_a_function_says_how_to_choose(root: Path) -> None:
    """Locking the wrong one would change what many functions run on."""
    write_function(root / "functions", "standard", HANDLER, 'dependencies = ["iniconfig==2.0.0"]\n')

    code, _, err = await faas(root, "lock", "standard")
    chosen = await faas(root, "lock", "functions/standard/", "--json")

    assert code == 2
    assert "type faas lock runtimes/standard or faas lock functions/standard" in err
    assert (chosen[0], json.loads(chosen[1])[0]["function"]) == (0, "standard")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("lock", "nosuch"), "profiles: standard; functions: plain, thumb"),
        (("lock", "folder/thumb"), "runtimes/NAME or functions/NAME"),
        (("lock", "plain"), "dependencies = ["),
        (("build", "runtimes/thumb"), "no profile and no function thumb"),
        (("env", "thumb", "--prune"), "leave the name out"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
async def test_what_cannot_be_locked_is_a_usage_error(root: Path, words: tuple[str, ...], advice: str) -> None:
    """One sentence that says what to type."""
    code, out, err = await faas(root, *words)

    assert (code, out) == (2, "")
    assert advice in err
    assert "Traceback" not in err


async def test_a_build_without_a_lock_that_fits_says_what_to_type_and_builds_the_others(root: Path) -> None:
    """One function that was edited holds up no image."""
    with (root / "runtimes" / "standard" / "requirements.in").open("a") as file:
        file.write("# edited\n")

    code, out, err = await faas(root, "build")

    assert code == 1
    assert out.startswith("standard: ")
    assert "environment of thumb: not locked yet; type: faas lock thumb" in err
    assert "standard: requirements.lock does not match requirements.in any more; type: faas lock standard" in err


async def test_env_tells_how_each_stands(root: Path) -> None:
    """From absent over built to stale, and back after a lock."""
    before = {one["function"]: one["state"] for one in await listed(root)}
    await faas(root, "lock", "thumb")
    await faas(root, "build")
    after = {one["function"]: (one["state"], one["stale_lock"], one["package_count"]) for one in await listed(root)}
    write_function(root / "functions", "thumb", HANDLER, 'dependencies = ["iniconfig==2.1.0"]\n')
    stale = {one["function"]: (one["state"], one["stale_lock"]) for one in await listed(root)}

    assert before == {"": "absent", "thumb": "absent"}
    assert after == {"": ("built", False, 1), "thumb": ("built", False, 1)}
    assert stale == {"": ("built", False), "thumb": ("built", True)}


async def test_env_of_one_lists_its_packages(root: Path) -> None:
    """What is installed, with versions, where it is, and how large."""
    await faas(root, "lock", "thumb")
    await faas(root, "build", "thumb")

    (own,) = await listed(root, "thumb")
    (of_profile,) = await listed(root, "plain")
    code, out, _ = await faas(root, "env", "thumb")

    assert own["packages"] == [{"name": "iniconfig", "version": "2.0.0"}]
    assert (own["profile"], own["python"], Path(own["folder"]).name) == ("standard", of_profile["python"], own["digest"])
    assert own["size_bytes"] > 0
    assert [package["name"] for package in of_profile["packages"]] == ["msgspec"]
    assert code == 0
    assert "iniconfig 2.0.0" in out


async def test_env_sees_a_build_of_another_process(root: Path) -> None:
    """Whoever waits for it wants to know that somebody builds."""
    profile = load_profile(root / "runtimes" / "standard")
    (root / "state" / "environments").mkdir(parents=True)
    held = open_lock(root / "state" / "environments" / f"{await digest_of(profile)}.lock")
    assert try_lock(held)

    (one,) = await listed(root, "standard")

    os.close(held)
    assert one["state"] == "building"


async def test_prune_removes_what_nobody_uses_and_keeps_what_a_node_runs_on(root: Path) -> None:
    """Of old locks a state folder would only ever grow."""
    await faas(root, "lock", "thumb")
    await faas(root, "build")
    write_function(root / "functions", "thumb", HANDLER, 'dependencies = ["iniconfig==2.1.0"]\n')
    await faas(root, "lock", "thumb")
    old = load_profile(root / "runtimes" / "standard")
    async with Builder(root / "state" / "environments") as builder:
        used = await builder.ensure(old)  # as a node does
        lock = root / "runtimes" / "standard" / "requirements.lock"
        lock.write_text(lock.read_text() + "# another\n")
        unused = [one["digest"] for one in await listed(root) if one["state"] == "unused"]
        first = json.loads((await faas(root, "env", "--prune", "--json"))[1])
    second = json.loads((await faas(root, "env", "--prune", "--json"))[1])
    code, out, _ = await faas(root, "env", "--prune")

    assert used.digest in unused
    assert len(unused) == 2
    assert (first["in_use"], len(first["removed"]), first["freed_bytes"] > 0) == ([used.digest], 1, True)
    assert [one["digest"] for one in second["removed"]] == [used.digest]
    assert (code, out) == (0, "0 removed, 0 B\n")
    assert not [path for path in (root / "state" / "environments").iterdir() if path.is_dir()]


async def test_prune_keeps_everything_where_a_profile_cannot_be_read(root: Path) -> None:
    """What it uses is not known, and building it anew may take an hour."""
    await faas(root, "build", "standard")
    (root / "runtimes" / "standard" / "requirements.lock").unlink()

    code, _, err = await faas(root, "env", "--prune")

    assert code == 2
    assert "type: faas lock standard" in err
    assert [path for path in (root / "state" / "environments").iterdir() if path.is_dir()]


async def test_locking_a_function_against_a_stale_profile_is_warned_of(root: Path) -> None:
    """Once the profile is locked anew, the function's lock is worth nothing."""
    with (root / "runtimes" / "standard" / "requirements.in").open("a") as file:
        file.write("# edited\n")

    code, _, err = await faas(root, "lock", "thumb")

    assert code == 0
    assert err == "faas: standard: requirements.lock does not match requirements.in any more; type: faas lock standard\n"


async def test_locking_a_profile_names_the_functions_that_are_to_be_locked_after_it(root: Path) -> None:
    """They are invalid from then on, which would first be seen at the next start of a node."""
    await faas(root, "lock", "thumb")
    (root / "runtimes" / "standard" / "requirements.in").write_text("six==1.17.0\n")

    code, _, err = await faas(root, "lock", "standard")
    again = await faas(root, "lock", "standard")

    assert (code, err) == (0, "faas: thumb: locked against this profile as it was; type: faas lock thumb\n")
    assert again[2] == ""


async def test_packages_that_cannot_be_installed_fail_their_function_alone(root: Path) -> None:
    """Its events are told why at once; the profile's other functions run."""
    await faas(root, "lock", "thumb")
    lock = root / "functions" / "thumb" / "requirements.lock"
    lock.write_text(re.sub("sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", lock.read_text()))
    async with running(root / "functions", root / "state", "--runtimes", str(root / "runtimes")) as node:
        failed = await node.request("thumb", b"1")

        assert end(failed) == ("failed", "environment_failed")
        assert b"is none that its lock allows" in failed.data
        assert end(await node.request("plain", b"1")) == ("succeeded", "")


async def test_a_node_keeps_two_versions_of_one_package_apart(root: Path) -> None:
    """Side by side in forks of one template; the records say on what each ran."""
    code = "import iniconfig, importlib.metadata\ndef handle(event):\n    return importlib.metadata.version('iniconfig')\n"
    for name, version in (("old", "2.0.0"), ("new", "2.1.0"), ("stale", "2.1.0")):
        write_function(root / "functions", name, code, f'dependencies = ["iniconfig=={version}"]\n')
        await faas(root, "lock", name)
    write_function(root / "functions", "stale", code, 'dependencies = ["iniconfig==1.1.1"]\n')
    async with running(root / "functions", root / "state", "--runtimes", str(root / "runtimes")) as node:
        answers = [await node.request(name, b"1") for name in ("old", "new", "old", "plain")]
        _, functions, _ = await command("functions", "--json", "--state", str(root / "state"))
        digests = set()
        for name, answer in zip(("old", "new", "plain"), (answers[0], answers[1], answers[3]), strict=True):
            assert answer.headers is not None
            (record,) = await node.records(name, answer.headers["Faas-Invocation"])
            digests.add(record["environment"])

    assert [answer.data for answer in answers] == [b'"2.0.0"', b'"2.1.0"', b'"2.0.0"', b"1"]
    assert len(digests) == 3
    errors = {one["name"]: one.get("error", "") for one in json.loads(functions)}
    assert errors["stale"].startswith("stale/function.toml: dependencies: the lock was made from other dependencies")
    assert errors["stale"].endswith("type: faas lock stale")
    assert "not locked yet; type: faas lock thumb" in errors["thumb"]
    assert errors["old"] == errors["new"] == ""
