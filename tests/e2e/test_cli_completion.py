"""`faas --install-completion`: the script names the verbs, works in the shell that it is for, and goes where that looks."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from node import command

SHELLS = ("bash", "zsh", "fish")
VERBS = ("build", "demo", "doctor", "env", "functions", "invoke", "lock", "logs", "new", "publish", "up")


@pytest.mark.parametrize("shell", SHELLS)
async def test_the_script_names_every_verb(shell: str) -> None:
    """A verb that completion does not know looks as if it were none."""
    code, script, err = await command("--install-completion", "--shell", shell, "--show")

    assert (code, err) == (0, "")
    assert all(verb in script for verb in VERBS)
    assert "--template" in script or "template" in script


async def test_bash_completes_a_verb_by_the_script() -> None:
    """It is not enough that it is long."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    _, script, _ = await command("--install-completion", "--shell", "bash", "--show")
    typed = "COMP_WORDS=(faas doc); COMP_CWORD=1; _faas; echo ${COMPREPLY[@]}"

    done = await asyncio.to_thread(subprocess.run, [bash, "--norc", "-c", f"{script}\n{typed}"], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["doctor"]


@pytest.mark.parametrize("shell", SHELLS)
async def test_it_is_written_where_the_shell_looks(tmp_path: Path, shell: str) -> None:
    """And nowhere outside of the home folder."""
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
    code, out, err = await command("--install-completion", "--shell", shell, "--json", environ=environ)

    assert (code, err) == (0, "")
    path = Path(json.loads(out)["path"])
    assert path.is_relative_to(tmp_path)
    assert path.stat().st_size > 1000


async def test_a_home_that_cannot_be_written_is_told() -> None:
    """With what to do instead."""
    code, _, err = await command("--install-completion", "--shell", "bash", environ={"HOME": "/proc/nowhere"})

    assert code == 2
    assert "--show" in err
    assert len(err.splitlines()) == 1
