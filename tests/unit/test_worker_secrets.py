"""Files of secrets where a worker may not have a mount namespace, as in most containers: in the folder that the node made."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from faas.worker.secrets import Secrets, receive
from faas.worker.wire import WireError

PROGRAM = """
import json, os, sys
from faas.worker.secrets import receive
got = receive({"hf_token": "x\\n\u00e9"}, sys.argv[1])
print(json.dumps([dict(got), (got.folder / "hf_token").read_text(), sys.argv[1] in open("/proc/self/mounts").read()]))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs to give up what only root has")
def test_without_a_namespace_files_are_in_the_nodes_folder_and_no_less_its_users_alone(tmp_path: Path) -> None:
    """What is not permitted is done without, and nothing fails for it."""
    command = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [{"hf_token": "x\n\u00e9"}, "x\n\u00e9", False]
    assert stat.S_IMODE((tmp_path / "hf_token").stat().st_mode) == 0o400


def test_in_a_test_of_an_author_secrets_are_made_of_a_mapping() -> None:
    """`faas.Context(secrets=faas.Secrets({...}))`: no node, no file."""
    secrets = Secrets({"hf_token": "x"})

    assert (secrets["hf_token"], list(secrets), len(secrets), "db" in secrets, secrets.folder) == ("x", ["hf_token"], 1, False, None)
    assert secrets.get("db", "none") == "none"
    with pytest.raises(KeyError, match="name it in secrets"):
        secrets["db"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """The node checks names; a worker writes files, and checks again."""
    program = f"from faas.worker.secrets import receive\nreceive({{{name!r}: 'x'}}, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert f"{WireError.__name__}: refused secret" in done.stderr
    assert list(tmp_path.parent.glob("x")) == []


def test_nothing_is_done_where_there_are_none() -> None:
    """Most functions have none."""
    assert dict(receive({}, "/nowhere")) == {}
