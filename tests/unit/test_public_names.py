"""What `import faas` offers: every name is there, and a type checker knows what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import faas
from faas.envelope import Reply
from faas.errors import InvocationFailed, NoSuchFunction

PROGRAM = """
import faas

async def main() -> None:
    async with faas.connect() as client:
        reveal_type(client)
        try:
            reveal_type(await client.submit("hello"))
        except faas.InvocationFailed as failed:
            reveal_type(failed.traceback)
"""


@pytest.mark.parametrize("name", faas.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each is looked up when it is first used, so a wrong module would show then."""
    assert getattr(faas, name).__name__ == name
    assert name in dir(faas)


def test_errors_that_callers_catch_are_public() -> None:
    """Who calls a function writes `except faas.InvocationFailed`."""
    assert faas.InvocationFailed is InvocationFailed
    assert issubclass(NoSuchFunction, faas.FaasError)


@pytest.mark.timeout(60)  # mypy reads the package
def test_a_type_checker_knows_the_client(tmp_path: Path) -> None:
    """A package that is typed and whose client is of any type catches no mistake of a caller."""
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ("--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--follow-imports=silent")

    done = subprocess.run([sys.executable, "-m", "mypy", *options, "program.py"], cwd=tmp_path, capture_output=True, text=True)

    for known in ('"faas.client.Client"', '"faas.envelope.Ticket"', '"str"'):
        assert f"Revealed type is {known}" in done.stdout, done.stdout + done.stderr


def test_an_outcome_is_shown_on_one_line() -> None:
    """In a notebook the last value is printed, and a vector of a model fills the screen."""
    headers = {"Faas-Outcome": "succeeded", "Content-Type": "application/json"}

    assert repr(Reply(headers, b"[" + b"0.123," * 1000 + b"0]")) == "Reply(outcome='succeeded', application/json, 6003 bytes)"
    refused = Reply({"Faas-Outcome": "rejected", "Faas-Reason": "payload_invalid"}, b"")
    assert repr(refused) == "Reply(outcome='rejected', reason='payload_invalid', no content type, 0 bytes)"
