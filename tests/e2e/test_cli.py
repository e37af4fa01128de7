"""The verbs as people type them: results, exit codes, and errors of one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from node import command, echoing


@pytest.mark.timeout(30)  # seven processes, one after another
async def test_the_client_verbs_find_the_node_and_print_results(tmp_path: Path) -> None:
    """The five lines of the README."""
    state = ["--state", str(tmp_path / "state")]
    async with echoing(tmp_path, fails="def handle(event):\n    raise ValueError('no')\n"):
        assert await command("invoke", "echo", "21", *state) == (0, "21\n", "")
        code, out, err = await command("invoke", "fails", "21", *state)
        assert (code, out) == (1, "")
        assert "fails: failed: error" in err
        assert "ValueError: no" in err
        code, out, _ = await command("publish", "life.echo", "5", "--wait", *state)
        assert (code, out) == (0, "echo: succeeded: 5\n")
        code, out, _ = await command("publish", "life.fails", "5", "--wait", "--json", *state)
        assert code == 1
        assert json.loads(out)["outcomes"][0]["reason"] == "error"
        code, out, _ = await command("invoke", "echo", "5", "--async", *state)
        assert code == 0
        assert len(out.strip()) == 26
        for arguments in (("invoke", "nosuch", "1"), ("publish", "life.nobody", "1")):
            code, _, err = await command(*arguments, *state)
            assert code == 1
            assert "faas functions" in err
            assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("invoke",),
        ("invoke", "echo", "1", "--stream"),
        ("publish", "life.*", "1"),
        ("publish", "life.echo", "1", "--header", "novalue"),
        ("invoke", "echo", "@/nowhere/file.json"),
        ("up", "--pool", "docker"),
        ("up", "--environments", "none"),
        ("up", "--gpus", "simulate:2x24GiB"),
        ("up", "--bus", "nonsense"),
        ("up", "--node", "no spaces"),
        ("nosuchverb",),
        ("functions",),
    ],
    ids=" ".join,
)
async def test_what_cannot_be_is_a_usage_error_in_one_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit 2, and never a traceback."""
    state = () if arguments[0] == "nosuchverb" else ("--state", str(tmp_path / "none"))
    code, _, err = await command(*arguments, *state, environ={"FAAS_NATS": ""})

    assert code == 2
    assert err.strip()
    assert "Traceback" not in err


async def test_one_id_is_one_event_on_each_subject_and_may_be_waited_for_again(tmp_path: Path) -> None:
    """A stream's own dedup knows no subjects: two functions given one id must both run."""
    state = ["--state", str(tmp_path / "state")]
    async with echoing(tmp_path, other="def handle(event: int):\n    return event\n"):
        for function in ("echo", "other"):
            assert await command("publish", f"life.{function}", "1", "--id", "same", "--wait", *state) == (
                0,
                f"{function}: succeeded: 1\n",
                "",
            )
        assert await command("publish", "life.echo", "1", "--id", "same", "--wait", *state) == (0, "echo: succeeded: 1\n", "")
