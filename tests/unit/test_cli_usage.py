"""Lines that cannot be understood: one sentence in the words of the verbs, never in those of the parser."""

from __future__ import annotations

import functools
import sys

import pytest

from faas.cli.main import main
from faas.cli.usage import NOT_YET
from faas.cli.verbs import application, verbs


def said(line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["faas", *line])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["invok"], "faas: there is no verb 'invok'; did you mean `faas invoke`?"),
        (["--hepl"], "faas: there is no option '--hepl'; did you mean `faas --help`?"),
        (["frobnicate"], "faas: there is no verb 'frobnicate'; `faas --help` lists what there is"),
        (["budgets", "list"], "faas: `faas budgets` is not supported yet; `faas --help` lists what is"),
        (["invoke"], "faas: invoke needs FUNCTION; `faas invoke --help` says more"),
        (["new"], "faas: new needs NAME; `faas new --help` says more"),
        (["invoke", "hello", "--timeout"], "faas: invoke: --timeout needs a value; `faas invoke --help` says more"),
        (
            ["invoke", "hello", "{name:", "Ada}"],
            "faas: invoke: 'Ada}' is one argument too many; put quotes around what belongs together; `faas invoke --help` says more",
        ),
        (
            ["invoke", "hello", "--timeot", "3s"],
            "faas: invoke: there is no option '--timeot'; did you mean --timeout?; `faas invoke --help` says more",
        ),
        (
            ["functions", "one", "hello"],
            "faas: functions: 'hello' is one argument too many; put quotes around what belongs together; `faas functions --help` says more",
        ),
    ],
)
def test_a_mistyped_line_is_told_with_what_to_type(
    line: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first minutes with a command line are mostly these."""
    assert said(line, monkeypatch, capsys) == sentence


def test_a_mistyped_option_is_never_sent_as_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Data may begin with a dash, and an event that nobody meant cannot be taken back."""
    assert "'--asnyc' is no option" in said(["invoke", "hello", "--asnyc"], monkeypatch, capsys)
    assert "no node runs" in said(["invoke", "hello", "--state", "/nowhere", "--", "--asnyc"], monkeypatch, capsys)
    assert "no node runs" in said(["invoke", "hello", "-1", "--state", "/nowhere"], monkeypatch, capsys)


def test_what_is_planned_is_no_verb_yet() -> None:
    """Else a verb that works would be refused where another is mistyped."""
    assert NOT_YET.isdisjoint(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_every_argument_of_a_verb_says_what_it_is(verb: str) -> None:
    """A required NAME without a word beside it leaves people to guess where names come from."""
    app = functools.reduce(lambda app, word: app[word], verb.split(), application())
    arguments = app.assemble_argument_collection(parse_docstring=False) if app.default_command else []

    assert [argument.name for argument in arguments if argument.show and not argument.parameter.help] == []
