"""What `faas doctor` concludes from what a machine says, where this machine says something else."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from folders import PROFILES, folder

from faas.cli import confidential, project
from faas.cli.findings import Finding, examine, ok, output_of
from faas.cli.machine import driver_version, torch_against_driver
from faas.cli.webhooks import webhooks

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 17 22:55:48 UTC 2024\nGCC version:  gcc version 12.3.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x@y)  Tue Sep 23\n"


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "535.161.08"), (OPEN, "580.95.05"), ("", ""), ("NVRM version: none", "")])
def test_the_driver_is_read_from_both_kernel_modules(text: str, version: str) -> None:
    """The open one names itself in other words."""
    assert driver_version(text) == version


@pytest.mark.parametrize(
    ("pins", "driver", "state"),
    [
        ({"torch": "2.13.0", "nvidia-cuda-runtime-cu12": "12.8.90"}, "535.161.08", "ok"),
        ({"torch": "2.13.0", "nvidia-cuda-runtime-cu12": "12.8.90"}, "470.82", "problem"),
        ({"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96"}, "575.57", "problem"),
        ({"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.96"}, "580.65.06", "ok"),
        ({"torch": "2.13.0+cpu"}, "470.82", "ok"),
        ({"torch": "2.13.0"}, "470.82", "ok"),
    ],
)
def test_torch_is_compared_with_the_driver_by_its_cuda(pins: dict[str, str], driver: str, state: str) -> None:
    """A newer CUDA on an older driver fails at the first kernel, in words that name neither."""
    assert torch_against_driver("ai", pins, driver).state == state


def test_a_probe_that_hangs_or_fails_is_a_finding_and_hides_no_other() -> None:
    """A dead disk must not hang the doctor."""
    never = threading.Event()

    def hangs() -> Iterable[Finding]:
        never.wait()
        return []

    def fails() -> Iterable[Finding]:
        raise OSError(5, "Input/output error")

    found = examine({"hangs": hangs, "fails": fails, "works": lambda: [ok("works", "yes")]}, within_s=0.2)
    never.set()

    assert [(finding.name, finding.state) for finding in found] == [("hangs", "problem"), ("fails", "problem"), ("works", "ok")]
    assert "Input/output error" in found[1].detail


def test_a_program_that_hangs_or_is_not_there_is_told() -> None:
    """A docker whose engine is frozen answers nothing."""
    assert output_of("sleep", "60", within_s=0.1) == (False, "no answer within 0.1 s")
    assert output_of("/nowhere/docker")[0] is False
    assert output_of("sh", "-c", "echo one; echo two") == (True, "two")


@pytest.mark.parametrize(("mode", "state"), [(0o700, "ok"), (0o750, "warning"), (0o777, "problem")])
def test_a_state_folder_that_others_can_enter_is_told(tmp_path: Path, mode: int, state: str) -> None:
    """What is in it is run as the node's user."""
    tmp_path.chmod(mode)

    assert [finding.state for finding in project.state(tmp_path)] == [state]


def test_a_token_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    """Whoever has it may do everything on the bus."""
    tmp_path.chmod(0o700)
    (tmp_path / "node.json").write_text("{}")
    (tmp_path / "node.json").chmod(0o644)

    assert [finding.fix for finding in project.state(tmp_path) if finding.state == "problem"] == [f"chmod 600 {tmp_path / 'node.json'}"]


def test_files_that_look_like_secrets_are_told_where_others_can_read_them(tmp_path: Path) -> None:
    """They are made with an editor, and an editor makes them readable by all."""
    (tmp_path / "secrets").mkdir()
    for name in ("secrets/hf_token", ".env", "tls.key", "README"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o644)
    (tmp_path / "tls.key").chmod(0o600)

    assert [finding.fix for finding in confidential.files(tmp_path)] == ["chmod 600 secrets/hf_token", "chmod 600 .env"]


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("nonsense", "problem"),
        ('{"node": "n", "pid": 999999999, "http": "http://127.0.0.1:1", "nats": "nats://127.0.0.1:1"}', "warning"),
        ('{"node": "n", "pid": 1, "http": "http://127.0.0.1:1", "nats": "nats://127.0.0.1:1"}', "problem"),
    ],
    ids=["garbage", "killed", "silent"],
)
def test_what_a_node_left_behind_is_told_from_one_that_is_stuck(tmp_path: Path, text: str, state: str) -> None:
    """One needs nothing but the next start, the other somebody to end it."""
    (tmp_path / "node.json").write_text(text)

    (found,) = project.node(tmp_path)

    assert found.state == state


@pytest.mark.parametrize(("held", "bound", "state"), [(10, 100, "ok"), (79, 100, "ok"), (80, 100, "warning"), (10**9, -1, "ok")])
def test_a_stream_of_events_that_is_nearly_full_is_told_before_it_refuses(held: int, bound: int, state: str) -> None:
    """The publisher who is refused is seldom the one who can do something about it."""
    assert project._events(held, bound).state == state


def test_what_may_be_wrong_with_a_webhook_is_told_before_a_sender_meets_it(tmp_path: Path) -> None:
    """An open one, a secret that can be guessed, and two functions that do not agree; one that is fine is named."""
    functions, secrets = tmp_path / "functions", tmp_path / "secrets"
    functions.mkdir()
    secrets.mkdir(mode=0o700)
    (secrets / "strong").write_text("x" * 32)
    (secrets / "weak").write_text("short")
    config = tmp_path / "faas.toml"
    config.write_text(f'[secrets]\nfolder = "{secrets}"\n')
    hook = '[[trigger]]\nwebhook = "{}"\nverify = "{}"\n'
    folder(functions, "fine", hook.format("fine", "github") + 'secret = "strong"')

    (found,) = webhooks(config, functions, PROFILES)
    assert (found.state, found.detail) == ("ok", "/hooks/default/fine (github)")

    folder(functions, "open", hook.format("open", "none"))
    folder(functions, "weak", hook.format("weak", "slack") + 'secret = "weak"')
    folder(functions, "loose", hook.format("fine", "none"))
    found_now = list(webhooks(config, functions, PROFILES))

    assert [finding.state for finding in found_now] == ["problem", "warning", "warning"]
    assert "loose/function.toml" in found_now[0].detail
    assert "whoever reaches the node" in found_now[1].detail
    assert "has 5 bytes" in found_now[2].detail
