"""What people may type at a running node that cannot be: one sentence, the right exit code, and a node that goes on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from node import Node, command

MIB = 2**20


@pytest.mark.parametrize("name", ["bad name", "a.b", "double.>", "", "x\r\nPUB y 1", "\udcff"])
async def test_what_is_no_name_is_no_function(node: Node, name: str) -> None:
    """It would be another subject, or another line of the protocol."""
    code, out, err = await command("invoke", name, "1", "--nats", node.info["nats"])

    assert (code, out) == (1, "")
    assert "no function" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("headers", [["--header", "a=b\nc"], ["--header", "a:b=c"], ["--id", "x" * 1025], ["--header", "a=\udcff"]])
async def test_what_cannot_travel_is_a_usage_error(node: Node, headers: list[str]) -> None:
    """Before anything is sent."""
    code, _, err = await command("publish", "exits.double", "1", *headers, "--nats", node.info["nats"])

    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("size", [MIB - 8, MIB, 3 * MIB])
@pytest.mark.parametrize("verb", [("invoke", "double"), ("publish", "exits.double")])
async def test_a_payload_above_the_bus_limit_costs_no_connection(node: Node, tmp_path: Path, size: int, verb: tuple[str, str]) -> None:
    """The server answers a body that fits with headers that do not by closing the connection; it goes through the object store instead."""
    (tmp_path / "body").write_bytes(b"1" * size)

    code, _, err = await command(*verb, f"@{tmp_path / 'body'}", "--nats", node.info["nats"])

    assert (code, "payload_invalid" in err) == ((1, True) if verb[0] == "invoke" else (0, False))  # a number is not what `double` takes
    assert "Traceback" not in err


@pytest.mark.parametrize("identity", [["--id", "a%41 b"], ["--id", "ä\r\n"], ["--header", "CE-Source=/me"], ["--header", "ce-id=x%20y"]])
async def test_waiting_finds_the_outcome_whatever_the_event_is_called(node: Node, identity: list[str]) -> None:
    """Caller and node work out the same invocation, or the caller waits for ever."""
    code, out, _ = await command("publish", "exits.double", '{"n": 4}', "--wait", *identity, "--nats", node.info["nats"])

    assert code == 0
    assert out.startswith("double: succeeded: ")


async def test_a_payload_without_an_end_is_refused(node: Node) -> None:
    """Reading it would take all memory."""
    code, _, err = await command("invoke", "double", "@/dev/zero", "--nats", node.info["nats"])

    assert code == 2
    assert "is a device, which never ends" in err


async def test_an_event_id_is_printed_on_one_line(node: Node) -> None:
    """Whoever chose it must not write into the terminal of whoever reads it."""
    code, out, _ = await command("publish", "exits.double", '{"n": 4}', "--id", "a\r\nb", "--nats", node.info["nats"])

    assert code == 0
    assert out == "'a\\r\\nb' stored in FAAS_EVENTS\n"


async def test_waiting_for_an_event_that_cannot_be_decoded_ends(node: Node) -> None:
    """It has no outcome; its dead letter says so, and what is wrong."""
    code, out, _ = await command("publish", "exits.double", "1", "--wait", "--header", "Faas-Timeout=soon", "--nats", node.info["nats"])

    assert code == 1
    assert out.startswith("double: rejected event_invalid")
    assert "soon" in out


@pytest.mark.parametrize("url", ["nats://127.0.0.1:1", "nats://wrong@{address}", "nats://{address}", "nats://[::1"])
async def test_a_bus_that_does_not_answer_is_told_at_once(node: Node, url: str) -> None:
    """With the address and the reason, and without the token."""
    code, _, err = await command("functions", "--nats", url.format(address=node.info["nats"].rpartition("@")[2]))

    assert code == 1
    assert "no NATS at" in err
    assert "wrong" not in err
    assert "Traceback" not in err


async def test_a_list_of_functions_is_text_and_not_markup(node: Node) -> None:
    """What a folder is called reaches the terminal as it is."""
    code, out, _ = await command("functions", "--nats", node.info["nats"])

    assert code == 0
    assert "exits.fast (at most once)" in out
    assert "…" not in out


async def test_what_a_function_says_does_not_command_the_terminal(node: Node) -> None:
    """A message of a stranger's code would set its title, clear it, or type into it."""
    code, out, err = await command("invoke", "titles", "1", "--nats", node.info["nats"])

    assert (code, out) == (1, "")
    assert r"\x1b]0;owned\x07\x1b[2Jgone" in err
    assert all(ch.isprintable() or ch == "\n" for ch in err)


@pytest.mark.parametrize(
    "words",
    [
        ("dlq", "list", "--since", "999999999d"),
        ("logs", "double", "--since", "999999d"),
        ("invoke", "double", '{"n": 1}', "--timeout", "9999999d"),
    ],
)
async def test_a_duration_beyond_all_dates_is_only_a_long_one(node: Node, words: tuple[str, ...]) -> None:
    """Whoever means "everything" or "without end" types a large number."""
    code, _, err = await command(*words, "--nats", node.info["nats"])

    assert code == 0
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [("functions --nats {nats} >/dev/full", "No space left"), ("publish exits.double - --nats {nats} <&-", "standard input is closed")],
)
async def test_a_stream_that_cannot_be_used_is_told_in_a_sentence(node: Node, words: str, said: str) -> None:
    """A full disk and a job without standard input are everyday."""
    line = f"{sys.executable} -m faas {words.format(nats=node.info['nats'])}"
    process = await asyncio.create_subprocess_shell(line, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()

    assert process.returncode in (1, 2)
    assert said in err.decode()
    assert "Traceback" not in err.decode()
