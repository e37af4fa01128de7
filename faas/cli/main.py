"""The verbs and what every one of them has in common: help, exit codes, one sentence for an error. Imports no part of the node."""

from __future__ import annotations

import sys
from typing import NoReturn

from cyclopts import App, CycloptsError

from faas.cli.options import asks_for_json, say_error
from faas.errors import ConfigInvalid, FaasError, ServerFailed, StateLocked
from faas.version import __version__

app = App(
    name="faas",
    version=__version__,
    help="Functions on GPUs, run by events. `faas demo` shows it; `faas up` runs a node; every verb has --help.",
    help_format="plaintext",
    result_action="return_value",
)
HELP = {
    "faas.cli.node:up": """Run a node in the foreground, until SIGINT or SIGTERM.

The first signal drains it: what runs may finish, what waits goes back to the bus. A second one kills it.

Example: faas up --bus 127.0.0.1:0 --http 127.0.0.1:0""",
    "faas.cli.demo:demo": """Start a node on a scratch folder, run the example events, show what each used, stop.

Example: faas demo --only hello""",
    "faas.cli.events:publish": """Publish an event; --wait prints the outcome of every function that it sets off.

Exits 1 where nothing takes the subject, or, with --wait, where a function ended as anything but succeeded.

Example: faas publish demo.hello '{"name": "Ada"}' --wait""",
    "faas.cli.events:invoke": """Run one function and print its result.

A failure prints outcome, code and message to standard error and exits 1.

With --stream the items of a generator are printed as they come: text as it is, anything else a line each.

Example: faas invoke hello '{"name": "Ada"}'""",
    "faas.cli.logs:logs": """Print what a function printed and logged, of all invocations that are kept (24 hours), or of one.

Example: faas logs hello -f""",
    "faas.cli.new:new": """Make a function folder that runs as it is: handler, function.toml, example event, test.

Templates: plain (a function), class (loads once, answers often), stream (a generator), async, torch (a model, on a GPU where there is one).

Example: faas new thumb --template class""",
    "faas.cli.functions:functions": """List the functions of all nodes, the invalid ones with what is wrong; with a name, show one in full.

In full: every key as it is in effect, the environment, and the JSON Schema of what it takes and returns.

Example: faas functions hello""",
    "faas.cli.doctor:doctor": """Say what is wrong with this machine and project, and what to type; with a function, what suits it.

Examines NATS, uv, Docker, GPU and driver, disk, permissions, limits and isolation, profiles and locks, functions, and the node.
Exits 1 where something is a problem. With a function: which profile, which mode (on demand or kept warm) and which limits suit
it, by its usage records.

Example: faas doctor hello""",
    "faas.cli.environments:lock": """Resolve a profile's requirements.in, or a function's dependencies, to a hash-locked file.

A function's lock is made against its profile's: what the profile pins holds for the function too.

Example: faas lock ai""",
    "faas.cli.environments:build": """Build the environment of a profile, or the packages of a function, from its lock, in the state folder.

A node builds what is absent by itself; this does it ahead.

Example: faas build standard""",
    "faas.cli.env:env": """List the environments with digest, state, size and packages; with a name, show every package of one.

--prune removes those that no profile and no function of the folders uses. What a running node uses stays.

Example: faas env ai""",
}
"""Here and not in the verbs' modules, which `faas --help` would have to import."""

for target, text in HELP.items():
    app.command(target, name=target.rpartition(":")[2], help=text)

USAGE, FAILED = 2, 1


def main() -> None:
    """Run the command line; exit 0 where it went well, 1 where the thing failed, 2 where what was typed or configured is wrong."""
    try:
        code = app(print_error=False, exit_on_error=False)
    except CycloptsError as error:
        _fail("usage", f"{str(error).rstrip('.')}; `faas {' '.join(error.command_chain or ())}".rstrip() + " --help` says more", USAGE)
    except (ConfigInvalid, StateLocked, ServerFailed) as error:
        _fail(error.code, str(error), USAGE)
    except FaasError as error:
        _fail(error.code, str(error), FAILED)
    except UnicodeEncodeError as error:
        _fail(ConfigInvalid.code, f"{error.object[:200]!r} is no UTF-8 text, which paths and names must be here", USAGE)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read has gone; nobody is left to tell
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(code: str, detail: str, status: int) -> NoReturn:
    """Say what is wrong on standard error, in one sentence, or with --json as one line of JSON, and exit."""
    say_error(code, detail, json=asks_for_json(sys.argv[1:]))
    sys.exit(status)
