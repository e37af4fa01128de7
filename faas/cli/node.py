"""`faas up`: runs a node."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from faas.errors import ConfigInvalid

if TYPE_CHECKING:
    from faas.config import Config

KILLED = 130


def up(
    *,
    functions: Annotated[Path, Parameter(help="Folder of the functions.")] = Path("functions"),
    runtimes: Annotated[
        Path | None, Parameter(help="Folder of the runtime profiles; default runtimes, else those that come with faas.")
    ] = None,
    config: Annotated[Path | None, Parameter(help="Configuration file; default faas.toml where there is one.")] = None,
    state: Annotated[Path, Parameter(help="State folder: bus, environments, node.json.")] = Path(".faas"),
    nats: Annotated[str | None, Parameter(help="URL of a NATS server that is there already; else an embedded one is started.")] = None,
    bus: Annotated[str, Parameter(help="HOST:PORT of the embedded server; port 0 chooses.")] = "127.0.0.1:4222",
    http: Annotated[str, Parameter(help="HOST:PORT of /healthz and /readyz; port 0 chooses.")] = "127.0.0.1:8080",
    pool: Annotated[str, Parameter(help="process; docker and simulated are not supported yet.")] = "process",
    environments: Annotated[str, Parameter(help="build; current is not supported yet.")] = "build",
    gpus: Annotated[str, Parameter(help="auto or none; simulate is not supported yet.")] = "auto",
    node: Annotated[str | None, Parameter(help="Name of the node; default HOST-RANDOM, kept in the state folder.")] = None,
    verbose: Annotated[bool, Parameter(negative="", help="Log every finished invocation.")] = False,
) -> int:
    """Run a node in the foreground."""
    for option, given, known, later in (
        ("--pool", pool, ("process",), ("docker", "simulated")),
        ("--environments", environments, ("build",), ("current",)),
        ("--gpus", gpus, ("auto", "none"), ("simulate",)),
    ):
        if given not in known:
            supported = given.partition(":")[0] in later
            raise ConfigInvalid(f"{option} {given}: {'not supported yet' if supported else 'unknown'}; use {' or '.join(known)}")
    from faas.telemetry import set_up_logging

    set_up_logging(debug=verbose)
    settings = settings_of(functions=functions, runtimes=runtimes, config=config, state=state, nats=nats, addresses=(bus, http), node=node)
    return run(settings)


def settings_of(
    *,
    functions: Path,
    runtimes: Path | None,
    config: Path | None,
    state: Path,
    nats: str | None,
    addresses: tuple[str, str],
    node: str | None,
) -> Config:
    """Options, file and environment variables as one Config. Raises ConfigInvalid."""
    from faas.config import Config, load_file, node_name, parse_address
    from faas.environments.profile import shipped_runtimes

    file = config if config is not None else Path("faas.toml") if Path("faas.toml").exists() else None
    bus, pool, prices = load_file(file, os.environ)
    default = Path("runtimes")
    return Config(
        functions=functions,
        runtimes=runtimes if runtimes is not None else default if default.is_dir() else shipped_runtimes(),
        state=state,
        node=node_name(state, node),
        nats=nats or "",
        bus_address=parse_address(addresses[0], "--bus"),
        http_address=parse_address(addresses[1], "--http"),
        bus=bus,
        pool=pool,
        prices=prices,
    )


def run(settings: Config) -> int:
    """Run the node until a signal says to stop."""
    import uvloop

    from faas.app import NodeInfo, serve

    def ready(info: NodeInfo) -> None:
        print(f"faas: node {info.node} is ready: nats {info.nats} http {info.http}", flush=True)

    async def node() -> None:
        stop = asyncio.Event()
        stop_at_signals(stop)
        await serve(settings, stop, ready)

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
