"""The entry of the command line: what every verb has in common, exit codes and one sentence for an error. Imports no part of the node."""

from __future__ import annotations

import sys
from typing import NoReturn

from faas.errors import ConfigInvalid, FaasError, ServerFailed, StateLocked

USAGE, FAILED, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run the command line; exit 0 where it went well, 1 where the thing failed, 2 where what was typed or configured is wrong."""
    from faas.cli.verbs import overview

    try:
        if sys.argv[1:] in ([], ["--help"], ["-h"]):
            print(overview())
            code: object = 0
        else:
            code = _run()
    except (ConfigInvalid, StateLocked, ServerFailed) as error:
        _fail(error.code, str(error), USAGE)
    except FaasError as error:
        _fail(error.code, str(error), FAILED)
    except UnicodeEncodeError as error:
        _fail(ConfigInvalid.code, f"{error.object[:200]!r} is no UTF-8 text, which paths and names must be here", USAGE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read has gone; nobody is left to tell
        sys.exit(FAILED)
    except OSError as error:  # what was to be printed has no room, say
        _fail("os_error", str(error), FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> object:
    from cyclopts import CycloptsError

    from faas.cli.verbs import application

    try:
        return application()(sys.argv[1:], print_error=False, exit_on_error=False)
    except CycloptsError as error:
        from faas.cli.usage import in_words

        _fail("usage", in_words(error), USAGE)


def _fail(code: str, detail: str, status: int) -> NoReturn:
    """Say what is wrong on standard error, in one sentence, or with --json as one line of JSON, and exit."""
    from faas.cli.options import asks_for_json, say_error

    say_error(code, detail, json=asks_for_json(sys.argv[1:]))
    sys.exit(status)
