"""Every verb by its module, with the help that teaches it, and the overview of all. Imports no verb, and to show the overview nothing at all.

Whoever types `faas --help` waits for every import before the first line: the parser of the command line alone takes a sixth of a second.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from faas.version import __version__

if TYPE_CHECKING:
    from cyclopts import App

ABOUT = "Functions on GPUs, run by events. `faas demo` shows it; `faas up` runs a node; every verb has --help."
HELP: Mapping[str, str] = {
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
    "faas.cli.runs:runs": """List what ran on any node, newest first; with an invocation, show that one in full.

In full: event, attempts with phases, node and usage, what it printed and logged, its dead letter. 30 days are kept.

Example: faas runs --function hello --outcome failed --since 1h""",
    "faas.cli.runs:why": """Say why an invocation waits, runs, or ended as it did.

Waiting: in the stream, in a back-off, or in the queue of a node and for what. Ended: each attempt with its reason.

Example: faas why kd3w7mnxq4r2apfz6ytb5hcj2e""",
    "faas.cli.new:new": """Make a function folder that runs as it is: handler, function.toml, example event, test.

Templates: plain (a function), class (loads once, answers often), stream (a generator), async, webhook (events by HTTP), schedule (runs by the clock), torch (a model, on a GPU where there is one).

Example: faas new thumb --template class""",
    "faas.cli.functions:functions": """List what the registry has and every node serves, the invalid ones with what is wrong; with a name, show one in full.

In full: every key as it is in effect, the environment, and the JSON Schema of what it takes and returns.

Example: faas functions hello""",
    "faas.cli.deploy:remove": """Withdraw a function from all nodes: it takes nothing new, and what it has accepted waits until it is back.

With --purge what waits is dropped, and every version that it had. A node whose folder still has the function deploys it again at its next start only where it has changed there, or was purged.

Example: faas functions remove hello""",
    "faas.cli.deploy:deploy": """Have the functions of a folder served by every node of the bus, from now on.

Only what differs from the version that is served is deployed; a function that is not in the folder is left as it is.

Of two that deploy one function in the same moment one is told so, and exits 1.

Example: faas deploy functions hello""",
    "faas.cli.deploy:rollback": """Have an earlier version of a function served; without one, the version before. Brings a withdrawn function back too.

Example: faas rollback hello 3f9a0c""",
    "faas.cli.nodes:nodes": """List the nodes of the bus: host, version, slots, what they serve, and when each was last heard of.

A node that was not heard of for 15 s is not listed.

Example: faas nodes""",
    "faas.cli.schedules:schedules": """List the schedules of functions: when each fires next, in its time zone, and when after that.

Not armed is one that nothing will fire, since no node serves its function.

Example: faas schedules""",
    "faas.cli.doctor:doctor": """Say what is wrong with this machine and project, and what to type; with a function, what suits it.

Examines NATS, uv, Docker, GPU and driver, disk, permissions, limits and isolation, profiles and locks, functions, and the node.

Exits 1 where something is a problem.

With a function: which profile, which mode (on demand or kept warm) and which limits suit it, by its usage records.

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
    "faas.cli.cancel:cancel": """Cancel an invocation: waiting in the stream, in a back-off, in a queue, or running, on whichever node.

A handler that runs is asked to stop, and killed after two seconds. Exits 1 where it has ended already, or nothing has that id.

Example: faas cancel kd3w7mnxq4r2apfz6ytb5hcj2e""",
    "faas.cli.dlq:list_letters": """List dead letters: events that ended as anything but succeeded, with the reason.

Example: faas dlq list --function embed --since 1h""",
    "faas.cli.dlq:show": """Show one dead letter whole: why, its headers, its body.

Example: faas dlq show kd3w7mnxq4r2apfz6ytb5hcj2e""",
    "faas.cli.dlq:redrive": """Run the events of dead letters again, each as a new invocation of the same event; a letter goes once that is stored.

How old an event is does not count then, and neither does a deadline that it had.

Example: faas dlq redrive --function embed --since 1h""",
    "faas.cli.dlq:purge": """Throw dead letters away for good.

Example: faas dlq purge --until 7d""",
    "faas.cli.natsconfig:nats_config": """Write users, their permissions and a seed file for each, for a nats-server that you run yourself.

For every [[tenant]], for the nodes, and for an operator, who deploys. Keys that are there already stay; seeds are never shown.

A rotation has two steps: --rotate USER, then, once its programs have the new seed, --retire USER; reload the server after each.

Example: faas nats-config --out nats""",
    "faas.cli.token:new": """Make a bearer token of a tenant for the HTTP gateway: the token, and the lines of faas.toml that let it in.

The token is shown this once; faas.toml holds its SHA-256. Taking the lines out again, and a new start of the node, ends it.

Example: faas token new acme --scope invoke --name ci --expires 90d""",
    "faas.cli.completion:install": """Install completion of verbs and options for bash, zsh or fish, or print its script.

Example: faas --install-completion --shell zsh""",
}
"""Here and not in the verbs' modules, which `faas --help` would have to import. The first sentence is what the overview shows."""
NAMES = {
    "faas.cli.completion:install": "--install-completion",
    "faas.cli.dlq:list_letters": "dlq list",
    "faas.cli.dlq:show": "dlq show",
    "faas.cli.dlq:redrive": "dlq redrive",
    "faas.cli.dlq:purge": "dlq purge",
    "faas.cli.deploy:remove": "functions remove",
    "faas.cli.natsconfig:nats_config": "nats-config",
    "faas.cli.token:new": "token new",
}
"""What is typed where it is not the function's own name: in a group of verbs, or like an option, since it needs no node and no project."""
GROUPS = {
    "dlq": "Dead letters: list, show, redrive, purge.",
    "functions": HELP["faas.cli.functions:functions"],
    "token": "Bearer tokens of the HTTP gateway: new.",
}
DEFAULTS = {"faas.cli.functions:functions": "functions"}
"""What a group does where no verb of it is typed."""
WIDTH = 100


def overview() -> str:
    """What `faas --help` prints: every verb with its first sentence."""
    lines = {name_of(target): text.partition("\n")[0] for target, text in HELP.items()}
    lines |= {"--help, -h": "Show this, or with a verb what it does.", "--version": "Show the version."}
    column = max(map(len, lines)) + 4
    width = min(WIDTH, shutil.get_terminal_size().columns)

    def entry(name: str) -> str:
        head = f"  {name}".ljust(column)
        return textwrap.fill(lines[name], width, initial_indent=head, subsequent_indent=" " * column)

    names = sorted(lines, key=lambda name: (name.startswith("-"), name))
    return "\n".join([f"Usage: faas VERB [--help]\n\n{textwrap.fill(ABOUT, width)}\n", *map(entry, names)])


def verbs() -> list[str]:
    """Every verb as it is typed."""
    return [name_of(target) for target in HELP]


def application() -> App:
    """The command line as its parser sees it: verbs by their modules, imported when they are typed."""
    from cyclopts import App

    app = App(name="faas", version=__version__, help=ABOUT, help_format="plaintext", result_action="return_value")
    groups = {name: App(name=name, help=text, help_format="plaintext") for name, text in GROUPS.items()}
    for group in groups.values():
        app.command(group)
    for target, text in HELP.items():
        group_name, _, verb = name_of(target).rpartition(" ")
        if target not in DEFAULTS:
            (groups[group_name] if group_name else app).command(target, name=verb, help=text)
        elif DEFAULTS[target] in sys.argv[1:2]:  # its module is imported where it is typed, like those of all verbs
            groups[DEFAULTS[target]].default(getattr(importlib.import_module(target.partition(":")[0]), verb))
    return app


def name_of(target: str) -> str:
    """What is typed for it, like `dlq list`."""
    return NAMES.get(target, target.rpartition(":")[2])
