"""What is wrong with a line that the parser of the command line did not take: one sentence in our words, with what to type. Knows no verb's module."""

from __future__ import annotations

import difflib

from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnusedCliTokensError

from faas.cli.options import LIKE_AN_OPTION
from faas.cli.verbs import verbs

NOT_YET = frozenset(
    [
        "dev",
        "map",
        "sweep",
        "top",
        "usage",
        "budgets",
        "gpus",
    ]
)
"""Verbs that are planned: whoever types one has read of it, and means no other."""
SHOWN_CHARACTERS = 80


def in_words(error: CycloptsError) -> str:
    """The sentence, without the name of the program."""
    verb = " ".join(error.command_chain or ()) or "faas"
    more = f"`{'faas ' if error.command_chain else ''}{verb} --help` says more"
    match error:
        case UnknownCommandError(unused_tokens=[token, *_]):
            return _unknown_verb(token)
        case UnusedCliTokensError(unused_tokens=[token, *_]):
            if (option := _unknown_option(error)) is not None:
                return f"{verb}: {option}; {more}"
            return f"{verb}: {_shown(token)} is one argument too many; put quotes around what belongs together; {more}"
        case MissingArgumentError(argument=argument) if argument is not None and argument.token_count()[0] == 1:
            given = error.keyword or next((token.keyword for token in argument.tokens if token.keyword), None)
            if given is None and argument.index is not None:
                return f"{verb} needs {argument.name.lstrip('-').upper()}; {more}"
            return f"{verb}: {given or argument.name} needs a value; {more}"
    return f"{verb}: {str(error).rstrip('.')}; {more}"


def _unknown_verb(token: str) -> str:
    if token in NOT_YET:
        return f"`faas {token}` is not supported yet; `faas --help` lists what is"
    known = [name for name in (*verbs(), "--help", "--version") if name.startswith("-") == token.startswith("-")]
    close = difflib.get_close_matches(token, known, n=1)
    meant = f"did you mean `faas {close[0]}`?" if close else "`faas --help` lists what there is"
    return f"there is no {'option' if token.startswith('-') else 'verb'} {_shown(token)}; {meant}"


def _unknown_option(error: UnusedCliTokensError) -> str | None:
    """Where data may begin with a dash, a mistyped option is taken for it, and what is left over is its value."""
    if error.app is None or error.argument is not None:
        return None
    known = {name for argument in error.app.assemble_argument_collection() for name in argument.names}
    for token in error.root_input_tokens or ():
        name = token.partition("=")[0]
        if token == "--":
            return None
        if LIKE_AN_OPTION.fullmatch(token) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            return f"there is no option {_shown(name)}{f'; did you mean {close[0]}?' if close else ''}"
    return None


def _shown(token: str) -> str:
    return repr(token if len(token) <= SHOWN_CHARACTERS else f"{token[:SHOWN_CHARACTERS]}...")
