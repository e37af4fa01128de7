"""The verbs as people type them: results, exit codes, and errors of one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from node import ECHO, Node, command, echoing, write_function


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
        ("up", "--bus", "no.such.host.invalid:0"),
        ("up", "--bus", "192.0.2.1:0"),
        ("up", "--bus", "127.0.0.1:0", "--nats", "nats://127.0.0.1:1"),
        ("publish", "life.echo", "1", "--id", "a", "--header", "ce-id=b"),
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
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("faas: ")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("nosuchverb",), 2, "usage"),
        (("invoke",), 2, "usage"),
        (("publish", "life.*", "1"), 2, "config_invalid"),
        (("functions", "--nats", "nats://127.0.0.1:1"), 1, "bus_unavailable"),
        (("new", "No"), 2, "config_invalid"),
        (("lock", "nosuch"), 2, "config_invalid"),
        (("build", "nosuch"), 2, "config_invalid"),
        (("doctor", "hello"), 2, "config_invalid"),
        (("demo", "--nats", "nats://127.0.0.1:1"), 1, "bus_unavailable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_with_json_an_error_is_one_line_of_json(tmp_path: Path, arguments: tuple[str, ...], code: int, error: str) -> None:
    """A program reads no prose; and what is on standard output is not mixed with it."""
    state = ("--state", str(tmp_path / "none")) if arguments[0] in ("invoke", "publish", "functions", "doctor") else ()
    found, out, err = await command(*arguments, *state, "--json", environ={"FAAS_NATS": ""})

    assert (found, out) == (code, "")
    assert set(document := json.loads(err)) == {"error", "detail"}
    assert document["error"] == error


async def test_with_json_a_failed_invocation_is_told_on_both(tmp_path: Path) -> None:
    """The whole outcome is the result; that it failed is the error."""
    async with echoing(tmp_path, fails="def handle(event):\n    raise ValueError('no')\n"):
        code, out, err = await command("invoke", "fails", "1", "--json", "--state", str(tmp_path / "state"))

    assert code == 1
    assert json.loads(out)["reason"] == "error"
    assert json.loads(err)["error"] == "error"


@pytest.mark.parametrize("verb", ["up", "doctor"])
async def test_a_state_path_that_is_no_text_is_told(verb: str) -> None:
    """It goes into configuration files, which are text."""
    code, _, err = await command(verb, "--state", "/tmp/\udcff")

    assert code == 2
    assert "--state" in err
    assert len(err.strip().splitlines()) == 1


VERBS = ("up", "demo", "publish", "invoke", "new", "functions", "doctor", "lock", "build", "env")


@pytest.mark.parametrize("verb", VERBS)
async def test_the_help_of_a_verb_has_an_example(verb: str) -> None:
    """People copy the example before they read the rest."""
    code, out, _ = await command(verb, "--help")

    assert code == 0
    assert f"Example: faas {verb}" in out


async def test_the_line_that_says_ready_names_what_is_not_built(node: Node) -> None:
    """Else the first event of a profile seems to hang."""
    ready = next(line for line in (node.state / "node.log").read_text().splitlines() if " is ready: " in line)

    assert "not ready yet: " in ready
    assert "broken" in ready.partition("not ready yet: ")[2]


async def test_the_line_that_says_ready_holds_no_token(node: Node) -> None:
    """It ends in a container's log, which more people read than may run functions; clients have it from node.json."""
    ready = next(line for line in (node.state / "node.log").read_text().splitlines() if " is ready: " in line)

    assert "nats nats://127.0.0.1:" in ready
    assert node.info["nats"].removeprefix("nats://").rpartition("@")[0] not in ready


@pytest.mark.timeout(60)
async def test_the_demo_tells_what_is_invalid_once(tmp_path: Path) -> None:
    """In full beside the progress, in short in the table; and a cost of nothing is no row of zeros."""
    write_function(tmp_path, "typo", ECHO, 'runtme = "standard"\n')
    write_function(tmp_path, "echo", ECHO, "")
    (tmp_path / "echo" / "example_event.json").write_text('{"data": 5}')

    code, out, err = await command("demo", "--functions", str(tmp_path), wait_s=50.0)

    assert code == 1
    assert err.count("unknown key") == 1
    assert " $0 " in out


async def test_an_id_in_a_header_is_the_events_id(tmp_path: Path) -> None:
    """It is what `--id` sets, so that it may be given either way."""
    async with echoing(tmp_path):
        _, out, _ = await command("publish", "life.echo", "1", "--header", "ce-id=mine", "--json", "--state", str(tmp_path / "state"))

    assert json.loads(out)["id"] == "mine"


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


async def test_a_node_that_was_killed_is_told_with_what_to_type(tmp_path: Path) -> None:
    """Its node.json is still there, and names an address where nobody listens."""
    (tmp_path / "node.json").write_text(json.dumps({"nats": "nats://secret@127.0.0.1:1", "pid": 1}))
    code, _, err = await command("functions", "--state", str(tmp_path), environ={"FAAS_NATS": ""})

    assert code == 1
    assert "was killed, or its machine stopped; start it with `faas up`" in err
    assert "secret" not in err
