"""What the doctor says of secrets before an event finds out: what is missing, who else reads it, and what was never ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from folders import PROFILES, folder

from faas.cli.confidential import secrets
from faas.cli.findings import Finding


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A function that names two secrets, and a folder that holds one of them."""
    (tmp_path / "functions").mkdir()
    folder(tmp_path / "functions", "fn", 'secrets = ["hf_token", "db"]\n')
    (tmp_path / "secrets").mkdir(mode=0o700)
    put(tmp_path, "hf_token")
    (tmp_path / "faas.toml").write_text('[secrets]\nfolder = "secrets"\n')
    return tmp_path


def put(project: Path, name: str, value: str = "tell-nobody-0123456789", mode: int = 0o600) -> Path:
    path = project / "secrets" / name
    path.write_text(value)
    path.chmod(mode)
    return path


def found(project: Path, *, state: str = "") -> list[Finding]:
    return [f for f in secrets(project / "faas.toml", project / "functions", PROFILES) if state in ("", f.state)]


def test_a_missing_secret_is_a_problem_with_what_to_type(project: Path) -> None:
    """Else the first event that needs it says so."""
    (finding,) = found(project)

    assert (finding.state, finding.fix) == ("problem", f"install -m 600 /dev/stdin {project}/secrets/db")
    assert finding.detail == f"function fn: secret db: there is no {project}/secrets/db; write it with {finding.fix}"


def test_all_is_well_where_every_secret_is_there(project: Path) -> None:
    """And the values are in nothing that it says."""
    put(project, "db")
    (finding,) = found(project)

    assert (finding.state, finding.detail) == ("ok", "hf_token, db named by functions")
    assert "tell-nobody" not in str(finding)


@pytest.mark.parametrize(
    ("name", "mode", "fix"), [("secrets", 0o755, "chmod 700 {}/secrets"), ("secrets/hf_token", 0o640, "chmod 600 {}/secrets/hf_token")]
)
def test_what_others_may_read_is_a_warning(project: Path, name: str, mode: int, fix: str) -> None:
    """Mounted secrets are so, and a node takes them."""
    put(project, "db")
    (project / name).chmod(mode)

    assert [finding.fix for finding in found(project, state="warning")] == [fix.format(project)]


def test_a_secret_that_is_too_short_to_be_hidden_is_a_warning(project: Path) -> None:
    """Nothing tells its author otherwise that it stands in the logs."""
    put(project, "db", "1234567")
    (finding,) = found(project, state="warning")

    assert "secret db has less than 8 bytes" in finding.detail
    assert "1234567" not in finding.detail


def test_a_rotation_that_was_never_ended_is_a_warning(project: Path) -> None:
    """The old value verifies on, which is why it was changed."""
    put(project, "db")
    previous = put(project, "db.previous")
    assert found(project, state="warning") == []
    then = time.time() - 40 * 86_400
    os.utime(previous, (then, then))

    assert [finding.fix for finding in found(project, state="warning")] == [f"rm {previous}"]


def test_a_folder_within_reach_of_functions_is_a_problem(project: Path) -> None:
    """A node refuses to start with it."""
    (project / "faas.toml").write_text('[secrets]\nfolder = "functions/fn"\n')
    (finding,) = found(project)

    assert finding.state == "problem"
    assert "move it out of there" in finding.detail


def test_variables_that_this_shell_has_not_may_be_the_nodes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor runs in another environment than the node, so it cannot tell; and it takes nothing out of its own."""
    (project / "faas.toml").write_text('[secrets]\nprovider = "environment"\n')
    monkeypatch.setenv("FAAS_SECRET_HF_TOKEN", "tell-nobody")
    (finding,) = found(project)

    assert finding.state == "warning"
    assert "FAAS_SECRET_DB is not set" in finding.detail
    assert os.environ["FAAS_SECRET_HF_TOKEN"] == "tell-nobody"


def test_the_secret_of_a_webhook_is_looked_for_too(project: Path) -> None:
    """Its first delivery would be refused."""
    put(project, "db")
    folder(project / "functions", "hook", '[[trigger]]\nwebhook = "gh"\nverify = "github"\nsecret = "gh_secret"\n')
    (finding,) = found(project)

    assert finding.detail.startswith("webhook gh of hook: secret gh_secret: there is no ")
