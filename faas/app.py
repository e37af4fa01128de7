"""The composition root: builds every part of a node from its `Config`, bottom-up on one exit stack, and unwinds it.

Sees the whole configuration, as `node` does, which holds the parts that run functions. Leaving the stack is the shutdown.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial

import msgspec
import structlog

from faas.bus import clock
from faas.bus.connection import Bus
from faas.bus.disk import DiskWatch
from faas.bus.janitor import Janitor
from faas.bus.keeper import StreamKeeper
from faas.bus.keys import Keys
from faas.bus.server import reached
from faas.config import Config
from faas.environments.profile import load_profiles
from faas.errors import only
from faas.gateway.bearer import bearer
from faas.gateway.doors import Doors
from faas.gateway.health import health_routes
from faas.gateway.server import Gateway, is_loopback
from faas.intake import Drained
from faas.model import FunctionReport, RuntimeProfile
from faas.node import Node, OnBuild
from faas.pool.printed import tell_build
from faas.processes import show_nothing
from faas.registry.spec import Reading, read_functions
from faas.security.secrets import Secrets
from faas.security.tenants import Tenants
from faas.security.tokens import Tokens
from faas.seeds import read_seed
from faas.statefolder import NodeInfo, node_file, state_folder

log = structlog.get_logger()

OnStopped = Callable[[Drained], None]


async def serve(config: Config, stop: asyncio.Event, ready: Callable[[NodeInfo], None], *, stopped: OnStopped) -> None:
    """Run a node until `stop` is set, then drain it. `ready` is called once, when every function is served, `stopped` at the end.

    Raises as `running` does.
    """
    async with running(config, on_stopped=stopped) as info:
        ready(info)
        await stop.wait()
        log.info("node.draining", node=config.node)


@asynccontextmanager
async def running(
    config: Config, *, eager: bool = True, on_build: OnBuild | None = None, on_stopped: OnStopped | None = None
) -> AsyncIterator[NodeInfo]:
    """A node that serves while the block runs, and drains when it is left. A part that fails ends the block.

    `eager` builds environments and keeps sandboxes warm from the start; else the first event of a profile does.
    Raises ConfigInvalid, StateLocked, ServerFailed, BusUnavailable before the block.
    """
    missing = ["bus", "functions"]

    def not_ready() -> list[str]:
        full = [disk.problem] if disk is not None and disk.problem else []
        return [*missing, *([] if bus is None or bus.connected else ["bus"]), *full]

    async def metrics() -> bytes:
        return b"" if node is None else await node.metrics()

    bus: Bus | None = None
    node: Node | None = None
    disk: DiskWatch | None = None
    try:
        async with AsyncExitStack() as stack:
            provider = _secrets(config)
            stack.enter_context(state_folder(config.state, config.node))
            absent = lambda: "" if node is None else node.absent  # noqa: E731
            gateway = await stack.enter_async_context(_gateway(config, missing))
            gateway.add(health_routes(ready=not_ready, absent=absent, metrics=metrics))
            profiles, broken = await asyncio.to_thread(load_profiles, config.runtimes)
            for error in broken:
                log.error("profile.invalid", error=str(error))
            folder = await asyncio.to_thread(_read_folder, config, profiles)
            url, token, server = await stack.enter_async_context(
                reached(config.bus, nats=config.nats, state=config.state.absolute(), address=config.bus_address)
            )
            bus = await stack.enter_async_context(_bus(config, url))
            missing.remove("bus")
            store_bytes = server.store_bytes if server is not None else None
            doors = await stack.enter_async_context(_doors(config, gateway, bus, keys=(keys := Keys(bus))))
            node = await stack.enter_async_context(Node.open(config, bus, on_build or tell_build, provider=provider, keys=keys))
            place = node.place(folder, profiles, eager=eager, store_bytes=store_bytes)
            await stack.enter_async_context(node.serving(place))
            await stack.enter_async_context(StreamKeeper.open(bus, node.declare, forget=node.forget))
            await stack.enter_async_context(Janitor.open(bus, expected=node.pulled))
            if server is not None:
                disk = await stack.enter_async_context(DiskWatch.open(server, bus))
            gateway.add(node.routes)
            await bus.fence()  # whoever reads node.json finds every endpoint
            missing.remove("functions")
            info = _info(config, node.reports, url=url, token=token, http=gateway.url)
            stack.enter_context(node_file(config.state / "node.json", info))
            try:
                yield msgspec.structs.replace(info, building=node.building if eager else ())
            finally:
                missing.append("the next start: this node stops")
                doors.stop()
        log.info("node.stopped", node=config.node, **asdict(node.drained))
        if on_stopped is not None:
            on_stopped(node.drained)
    except BaseExceptionGroup as group:
        raise only(group) from group


@asynccontextmanager
async def _gateway(config: Config, missing: list[str]) -> AsyncIterator[Gateway]:
    """The HTTP server, which lets in whoever has a token; where no tenant has one, its own machine alone."""
    async with Gateway.open(*config.http_address, config.http, waiting=lambda: missing) as gateway:
        if tokens := Tokens(config.tenants):
            gateway.identify = bearer(tokens)
        elif not is_loopback(config.http_address[0]):
            log.warning("gateway.closed", http=gateway.url, serves="its own machine alone: no [[tenant]] has a token")
        yield gateway


def _doors(config: Config, gateway: Gateway, bus: Bus, *, keys: Keys) -> AbstractAsyncContextManager[Doors]:
    return Doors.open(gateway, bus, config.http, node=config.node, state=config.state, keys=keys)


def _info(config: Config, reports: list[FunctionReport], *, url: str, token: str, http: str) -> NodeInfo:
    names = tuple(report.name for report in reports if report.state == "ready")
    return NodeInfo(node=config.node, pid=os.getpid(), nats=url, token=token, http=http, pool="process", functions=names)


def _secrets(config: Config) -> Secrets:
    """What `[secrets]` names; before anything is started, which would inherit those of the environment. Raises ConfigInvalid."""
    if config.secrets.folder or config.secrets.provider == "environment":
        show_nothing()
    return Secrets(config.secrets)


def _read_folder(config: Config, profiles: dict[str, RuntimeProfile]) -> Reading | None:
    """The functions of this node's own folder; None where it has none, and serves what others deploy. Raises SpecInvalid."""
    if config.nats and not config.functions.exists():
        log.info("folder.absent", functions=str(config.functions), serves="what the registry of the bus says")
        return None
    reading = read_functions(config.functions, profiles, mounts=config.mounts, tenants=Tenants(config.tenants))
    reading.warn()
    return reading


# ---------------------------------------------------------------- the bus


@asynccontextmanager
async def _bus(config: Config, url: str) -> AsyncIterator[Bus]:
    """The connection, which knows the bus's time."""
    seed = partial(read_seed, config.nkey) if config.nkey is not None else str
    async with Bus.open(url, node=config.node, seed=seed) as bus, clock.ClockWatch.open(bus):
        yield bus
