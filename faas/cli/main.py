"""The verbs and what every one of them has in common: help, exit codes, one sentence for an error. Imports no part of the node."""

from __future__ import annotations

import sys

from cyclopts import App, CycloptsError

from faas import __version__
from faas.errors import ConfigInvalid, FaasError, ServerFailed, StateLocked

app = App(
    name="faas",
    version=__version__,
    help="Functions on GPUs, run by events. `faas demo` shows it; `faas up` runs a node; every verb has --help.",
    help_format="plaintext",
    result_action="return_value",
)
app.command("faas.cli.node:up", name="up", help="Run a node in the foreground, until SIGINT or SIGTERM.")
app.command("faas.cli.demo:demo", name="demo", help="Start a node on a scratch folder, run the example events, show what they used, stop.")
app.command(
    "faas.cli.events:publish", name="publish", help="Publish an event; --wait prints the outcome of every function that it sets off."
)
app.command("faas.cli.events:invoke", name="invoke", help="Run one function and print its result.")
app.command("faas.cli.functions:functions", name="functions", help="List the functions of all nodes, the invalid ones with what is wrong.")
app.command("faas.cli.environments:lock", name="lock", help="Resolve a profile's requirements.in to a hash-locked requirements.lock.")
app.command("faas.cli.environments:build", name="build", help="Build the environment of a profile from its lock.")

USAGE, FAILED = 2, 1


def main() -> None:
    """Run the command line; exit 0 where it went well, 1 where the thing failed, 2 where what was typed or configured is wrong."""
    try:
        code = app(print_error=True, exit_on_error=False)
    except CycloptsError:
        sys.exit(USAGE)
    except (ConfigInvalid, StateLocked, ServerFailed) as error:
        print(f"faas: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except FaasError as error:
        print(f"faas: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read has gone; nobody is left to tell
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else 0)
