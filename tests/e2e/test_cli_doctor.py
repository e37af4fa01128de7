"""`faas doctor` on this machine, with and without a node, and on a function that has run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from node import ECHO, Node, command, echoing, running, write_function

pytestmark = pytest.mark.timeout(60)  # several processes, one after another


async def findings(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, dict[str, dict[str, str]]]:
    """(exit code, findings by name; of several with one name the worst) of `faas doctor --json`."""
    code, out, err = await command("doctor", *arguments, "--json", environ=environ, wait_s=25.0)
    assert err == ""
    order = ("ok", "warning", "problem")
    return code, {finding["name"]: finding for finding in sorted(json.loads(out), key=lambda finding: order.index(finding["state"]))}


async def test_without_a_node_everything_is_named_and_nothing_is_wrong(tmp_path: Path) -> None:
    """The first thing that somebody types whose node does not start."""
    code, found = await findings("--state", str(tmp_path / "state"))

    assert {"python", "nats", "uv", "docker", "gpu", "disk", "limits", "isolation", "state", "profile ai", "functions", "node"} <= set(
        found
    )
    assert {finding["state"] for name, finding in found.items() if name != "ports"} <= {"ok", "warning"}
    assert code == 0
    assert not (tmp_path / "state").exists()


async def test_what_is_wrong_is_a_problem_with_what_to_type(tmp_path: Path) -> None:
    """Exit 1, and each mistake by its own name."""
    write_function(tmp_path / "functions", "typo", ECHO, 'runtme = "standard"\n')
    (tmp_path / "faas.toml").write_text("[bus]\nsink = 1\n")
    (tmp_path / "runtimes" / "stale").mkdir(parents=True)
    (tmp_path / "runtimes" / "stale" / "profile.toml").write_text("")
    (tmp_path / "runtimes" / "stale" / "requirements.in").write_text("msgspec\n")
    (tmp_path / "runtimes" / "stale" / "requirements.lock").write_text("# source-sha256: 00\nmsgspec==0.19.0 --hash=sha256:00\n")
    folders = ["--functions", str(tmp_path / "functions"), "--runtimes", str(tmp_path / "runtimes")]

    code, found = await findings(*folders, "--config", str(tmp_path / "faas.toml"), "--state", str(tmp_path / "state"))

    assert code == 1
    assert "runtme" in found["function typo"]["detail"]
    assert "sink" in found["config"]["detail"]
    assert (found["profile stale"]["state"], found["profile stale"]["fix"]) == ("warning", "faas lock stale")


async def test_a_bus_that_is_named_is_asked(node: Node) -> None:
    """Reachable, new enough, with JetStream; and one that is not there is a problem, without its token."""
    _, found = await findings("--nats", node.info["nats"], "--state", str(node.state))

    assert found["nats"]["state"] == "ok"
    assert "with JetStream" in found["nats"]["detail"]
    assert "ready, with" in found["node"]["detail"]

    code, found = await findings("--state", "/nowhere", environ={"FAAS_NATS": "nats://s3cret@127.0.0.1:1"})

    assert code == 1
    assert found["nats"]["state"] == "problem"
    assert "s3cret" not in json.dumps(found)


async def test_a_function_that_ran_often_enough_gets_advice(tmp_path: Path) -> None:
    """By its own usage records, read from the bus."""
    folder, state = tmp_path / "functions", tmp_path / "state"
    arguments = ["--functions", str(folder), "--state", str(state)]
    async with echoing(tmp_path) as node:
        code, out, _ = await command("doctor", "echo", *arguments)
        assert code == 0
        assert "20 are needed" in out
        for number in range(25):
            await node.event("life.echo", b"1", id=f"e{number}")
        await node.records("echo", await invocation_of(node, "e24"))

        code, out, _ = await command("doctor", "echo", *arguments, "--json")

        assert code == 0
        said = json.loads(out)
        assert said["measured"]["attempts"] == 25
        assert sum(said["measured"]["starts"].values()) == 25
        assert [advice["key"] for advice in said["advice"]] == ["scale.keep_alive", "limits.memory", "runtime"]

        code, _, err = await command("doctor", "nosuch", *arguments)
        assert code == 1
        assert "no function nosuch" in err


async def invocation_of(node: Node, event: str) -> str:
    return (await node.outcome(event)).headers["Faas-Invocation"]  # type: ignore[index]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_state_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    """A node would not start."""
    (tmp_path / "state").mkdir(mode=0o500)

    code, found = await findings("--state", str(tmp_path / "state"))

    assert (code, found["state"]["state"]) == (1, "problem")


async def test_a_node_that_was_killed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    """Its node.json is still there."""
    write_function(tmp_path / "functions", "echo", ECHO, "")
    async with running(tmp_path / "functions", tmp_path / "state") as node:
        node.process.kill()
        await node.process.wait()
        _, found = await findings("--state", str(tmp_path / "state"), "--functions", str(tmp_path / "functions"))

    assert found["node"]["state"] == "warning"
    assert "was killed" in found["node"]["detail"]
