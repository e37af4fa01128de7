"""`faas up`: runs a node in the foreground. Owns its options and signals; what a node is belongs to `faas.app`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from faas.cli.options import DEFAULT_STATE, Folders, readable
from faas.errors import ConfigInvalid

if TYPE_CHECKING:
    from faas.config import Config
    from faas.intake import Drained

KILLED = 130
COLLECT_AFTER = (20_000, 20, 50)
"""Of the collector of cycles: invocations leave next to none, and at Python's 700 it looks for them in those that are under way."""
DEFAULT_BUS = "127.0.0.1:4222"

Environments = Annotated[
    Literal["build", "current"],
    Parameter(help="build: one for each profile. current: run them all on the interpreter of the node, and install nothing."),
]


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Addresses:
    """Where a node listens, and which bus it uses."""

    nats: Annotated[
        str | None, Parameter(help="URL of a nats-server that is there already, those of a cluster joined by commas; else an embedded one.")
    ] = None
    bus: Annotated[str | None, Parameter(help="HOST:PORT of the embedded server, default 127.0.0.1:4222; port 0 chooses.")] = None
    http: Annotated[str, Parameter(help="HOST:PORT of /healthz, /readyz and /metrics; port 0 chooses.")] = "127.0.0.1:8080"
    nkey: Annotated[
        Path | None, Parameter(help="Seed file to show the server of --nats; else FAAS_NKEY. `faas nats-config` writes it.")
    ] = None


@Parameter(name="*")
@dataclass(slots=True, frozen=True)
class Machine:
    """What of the machine a node uses."""

    pool: Annotated[str, Parameter(help="process; docker and simulated are not supported yet.")] = "process"
    environments: Environments = "build"
    gpus: Annotated[str, Parameter(help="auto or none; simulate is not supported yet.")] = "auto"

    def check(self) -> None:
        """Raises ConfigInvalid for what is unknown or not built yet."""
        for option, given, known, later in (
            ("--pool", self.pool, ("process",), ("docker", "simulated")),
            ("--gpus", self.gpus, ("auto", "none"), ("simulate",)),
        ):
            if given not in known:
                problem = "not supported yet" if given.partition(":")[0] in later else "unknown"
                raise ConfigInvalid(f"{option} {given}: {problem}; use {' or '.join(known)}")


def up(
    *,
    folders: Folders = Folders(),  # noqa: B008  # frozen
    config: Annotated[Path | None, Parameter(help="Configuration file; default faas.toml where there is one.")] = None,
    state: Annotated[Path, Parameter(help="State folder: bus, environments, node.json.")] = DEFAULT_STATE,
    addresses: Addresses = Addresses(),  # frozen
    machine: Machine = Machine(),  # frozen
    node: Annotated[str | None, Parameter(help="Name of the node; default HOST-RANDOM, kept in the state folder.")] = None,
    verbose: Annotated[bool, Parameter(negative="", help="Log every finished invocation.")] = False,
    json: Annotated[bool, Parameter(negative="", help="Print the line that says ready as JSON, and log JSON lines.")] = False,
) -> int:
    """Run a node in the foreground."""
    from faas.telemetry import set_up_logging

    machine.check()
    set_up_logging(debug=verbose, json=json)
    settings = settings_of(folders, addresses, state=state, config=config, node=node, environments=machine.environments)
    return run(settings, json=json)


def settings_of(
    folders: Folders,
    addresses: Addresses,
    *,
    state: Path,
    config: Path | None = None,
    node: str | None = None,
    environments: Environments = "build",
) -> Config:
    """Options, file and environment variables as one Config. Raises ConfigInvalid."""
    from faas.config import Config, keep_apart, load_file, node_name, parse_address

    if addresses.nats and addresses.bus:
        raise ConfigInvalid("--bus is where the embedded server listens, and with --nats there is none; leave one of the two out")
    if addresses.nkey and not addresses.nats:
        raise ConfigInvalid("--nkey is shown to the server of --nats; the embedded one has a token of its own; leave it out")
    readable(state, "--state")
    file = config if config is not None else Path("faas.toml") if Path("faas.toml").exists() else None
    parsed = load_file(file, os.environ)
    if parsed.bus.replicas > 1 and not addresses.nats:
        raise ConfigInvalid(
            f"bus.replicas: the embedded server is one, and {parsed.bus.replicas} need a cluster; give --nats URL, or leave it 1"
        )
    functions = folders.functions or Path("functions")
    keep_apart(parsed.secrets, functions=functions, mounts=parsed.node.mounts)
    return Config(
        functions=functions,
        runtimes=runtimes_folder(folders.runtimes),
        state=state,
        node=node_name(state, node),
        nats=addresses.nats or "",
        nkey=addresses.nkey or (Path(named) if addresses.nats and (named := os.environ.get("FAAS_NKEY")) else None),
        environments=environments,
        bus_address=parse_address(addresses.bus or DEFAULT_BUS, "--bus"),
        http_address=parse_address(addresses.http, "--http"),
        mounts=parsed.node.mounts,
        bus=parsed.bus,
        pool=parsed.pool,
        prices=parsed.prices,
        secrets=parsed.secrets,
        http=parsed.http,
        tenants=parsed.tenant,
    )


def runtimes_folder(given: Path | None) -> Path:
    """As given, else `runtimes` here, else the profiles that come with faas."""
    from faas.environments.profile import shipped_runtimes

    default = Path("runtimes")
    return given or (default if default.is_dir() else shipped_runtimes())


def run(settings: Config, *, json: bool) -> int:
    """Run the node until a signal says to stop."""
    import msgspec
    import uvloop

    from faas.app import serve
    from faas.statefolder import NodeInfo
    from faas.telemetry import without_token

    def ready(info: NodeInfo) -> None:
        gc.freeze()  # what a node is made of stays: looking through it again and again costs each invocation some microseconds
        if json:
            print(msgspec.json.encode(info).decode(), flush=True)
        else:
            building = f"; not ready yet: {', '.join(info.building)}, whose events wait" if info.building else ""
            print(f"faas: node {info.node} is ready: nats {without_token(info.nats)} http {info.http}{building}", flush=True)

    def stopped(drained: Drained) -> None:
        if not json:
            killed = f", {drained.killed} killed when the grace ran out" if drained.killed else ""
            finished = f"{drained.finished} finished after the signal, {drained.given_back} given back unstarted{killed}"
            print(f"faas: node {settings.node} has stopped: invocations: {finished}", flush=True)

    async def node() -> None:
        stop = asyncio.Event()
        stop_at_signals(stop)
        gc.set_threshold(*COLLECT_AFTER)
        await serve(settings, stop, ready, stopped=stopped)

    uvloop.run(node())
    return 0


def stop_at_signals(stop: asyncio.Event) -> None:
    """The first SIGINT or SIGTERM sets `stop`; a second one ends the process at once, and its children die with it."""

    def on_signal() -> None:
        if stop.is_set():
            os._exit(KILLED)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
