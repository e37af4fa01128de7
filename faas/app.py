"""The composition root: builds every part of a node from its `Config`, bottom-up on one exit stack, and unwinds it.

The only module that sees the whole configuration. Leaving the stack is the shutdown.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import msgspec
import structlog

from faas import subjects
from faas.accounting.records import UsageRecords
from faas.budget.prices import PriceTable
from faas.bus import clock
from faas.bus.connection import Bus, Message
from faas.bus.disk import DiskWatch
from faas.bus.janitor import Janitor
from faas.bus.keeper import StreamKeeper
from faas.bus.keys import Keys
from faas.bus.letters import Letters
from faas.bus.logs import LogLines
from faas.bus.outcomes import Outcomes
from faas.bus.payloads import Payloads
from faas.bus.pull import Heartbeats
from faas.bus.schedules import Schedules
from faas.bus.server import reached
from faas.bus.service import Service
from faas.bus.speech import Speech
from faas.cancelling import Cancelling
from faas.config import Config
from faas.dispatcher import Dispatcher
from faas.environments.build import Builder, BuildProgress
from faas.environments.current import CurrentInterpreter
from faas.environments.profile import load_profiles
from faas.errors import only
from faas.gateway.bearer import bearer
from faas.gateway.doors import Doors
from faas.gateway.functions import Functions
from faas.gateway.health import health_routes
from faas.gateway.metrics import exposition
from faas.gateway.publishing import EventStore
from faas.gateway.routes import Route
from faas.gateway.server import Gateway, is_loopback
from faas.gateway.webhooks import Webhooks
from faas.intake import Drained, Intake
from faas.keyed import KeyedCalls
from faas.model import FunctionReport, FunctionVersion, RuntimeProfile
from faas.place import Place
from faas.pool.attempt import Attempts
from faas.pool.grants import Grants
from faas.pool.large import LargeBodies
from faas.pool.metering import Billing
from faas.pool.mounts import Mounts
from faas.pool.pool import WorkerPool
from faas.pool.printed import tell_build, tell_output
from faas.pool.process import ProcessBackend
from faas.processes import show_nothing
from faas.questions import Questions
from faas.registry.nodes import Nodes, NodeSeen
from faas.registry.spec import Reading, read_functions
from faas.rollout import Rollout
from faas.security.secrets import Secrets
from faas.security.tenants import Tenants
from faas.security.tokens import Tokens
from faas.seeds import read_seed
from faas.statefolder import NodeInfo, node_file, state_folder
from faas.tally import Tally
from faas.timetable import Timetable
from faas.version import __version__

log = structlog.get_logger()

GRACE_S = 10.0
"""How long running attempts may take to finish after the first SIGTERM."""

Environments = Builder | CurrentInterpreter
OnBuild = Callable[[BuildProgress], None]
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
    node: _Node | None = None
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
            node = await stack.enter_async_context(_Node.open(config, bus, on_build or tell_build, provider=provider, keys=keys))
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


class _Node:
    """The parts that run functions, put together on one bus."""

    _webhooks: Webhooks  # `open` gives it
    _functions: Functions  # `serving` gives them

    def __init__(
        self,
        config: Config,
        bus: Bus,
        *,
        environments: Environments,
        pool: WorkerPool,
        intake: Intake,
        questions: Questions,
        captured: dict[str, str],
    ) -> None:
        self._config, self._bus, self._environments = config, bus, environments
        self._pool, self._intake, self._questions, self._captured = pool, intake, questions, captured
        self._not_enforced: tuple[str, ...] = ()
        self._cancelling: Cancelling | None = None
        self._rollout: Rollout | None = None
        self._timetable: Timetable | None = None
        self.reports: list[FunctionReport] = []
        self._since = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, bus: Bus, on_build: OnBuild, *, provider: Secrets, keys: Keys) -> AsyncIterator[_Node]:
        """Bottom-up: usage, backend, pool, dispatcher, intake; leaving it drains in the other order."""
        captured: dict[str, str] = {}
        async with AsyncExitStack() as stack:
            usage = await stack.enter_async_context(UsageRecords.open(bus))
            lines = await stack.enter_async_context(LogLines.open(bus))
            speech = await stack.enter_async_context(Speech.open(bus))
            backend = await stack.enter_async_context(ProcessBackend(config.state, config.node, on_output=partial(tell_output, lines)))
            environments = _environments(config)
            await stack.enter_async_context(environments)
            outcomes = Outcomes(bus)
            build = partial(environments.ensure, progress=on_build)
            build_overlay = partial(environments.ensure_overlay, progress=on_build)
            mounts = Mounts(config.state / "mounts", config.mounts)
            pool = await stack.enter_async_context(
                WorkerPool.open(config.pool, backend, build, build_overlay=build_overlay, stage=mounts.stage, grants=Grants(provider))
            )
            payloads = Payloads(bus)
            large = LargeBodies(payloads, outcomes.inline_limit_bytes, outcome_retention_s=config.bus.outcome_retention_s)
            attempts = _attempts(config, large, pool=pool, speech=speech)
            dispatcher = _dispatcher(bus, attempts, outcomes, speech=speech, usage=usage, captured=captured, keys=keys)
            questions = await stack.enter_async_context(
                Questions.open(
                    bus, config.node, database=config.state / "runs.db", tally=attempts.tally, pool=pool, unended=dispatcher.unended
                )
            )
            heartbeats = await stack.enter_async_context(Heartbeats.open(config.bus.ack_wait_s))
            service = await stack.enter_async_context(Service.open(bus, node=config.node, version=__version__))
            cancelling = await stack.enter_async_context(Cancelling.open(bus, outcomes, dispatcher.unended))
            intake = await stack.enter_async_context(
                Intake.open(bus, service, dispatcher, pool=pool, heartbeats=heartbeats, grace_s=GRACE_S)
            )
            node = cls(config, bus, environments=environments, pool=pool, intake=intake, questions=questions, captured=captured)
            node._webhooks = Webhooks(
                EventStore(bus, payloads), provider, config.http, tenants=bool(Tokens(config.tenants)), tally=attempts.tally
            )
            node._cancelling = cancelling
            cancelling.functions = node._function
            keys.is_open = cancelling.is_open
            node._not_enforced = tuple(sorted({"memory", "cpus", "pids"} - backend.enforced))
            yield node

    def place(self, folder: Reading | None, profiles: dict[str, RuntimeProfile], *, eager: bool, store_bytes: int | None) -> Place:
        """What of this node decides what it can serve."""
        config = self._config
        return Place(
            node=config.node,
            bus=config.bus,
            profiles=profiles,
            folder=folder,
            mounts=config.mounts,
            tenants=Tenants(config.tenants),
            copies=config.state / "mounts",
            store_bytes=store_bytes,
            eager=eager,
            not_enforced=self._not_enforced,
        )

    @property
    def routes(self) -> list[Route]:
        """What the gateway serves of it."""
        return [*self._webhooks.routes, *self._functions.routes()]

    async def declare(self) -> None:
        """Make the streams of what is served what they must be, once more."""
        if self._rollout is not None:
            await self._rollout.declare()

    def forget(self, stream: str) -> None:
        """A stream is gone."""
        self._intake.forget(stream)
        if self._timetable is not None:
            self._timetable.doubt()

    def pulled(self) -> list[tuple[str, tuple[str, ...]]]:
        """(name, filters) of the consumers that events are pulled from."""
        return self._intake.pulled()

    @asynccontextmanager
    async def serving(self, place: Place) -> AsyncIterator[None]:
        """Serve the registry, and answer what is asked about it."""
        if self._cancelling is not None:
            await self._cancelling.listen()
        async with Rollout.open(
            place,
            self._bus,
            pool=self._pool,
            intake=self._intake,
            environments=self._environments,
            captured=self._captured,
            on_hooks=self._webhooks.serve,
        ) as rollout:
            self.reports, self._rollout = rollout.reports, rollout
            self._functions = Functions(rollout.in_full, rollout.function, tenants=bool(Tokens(self._config.tenants)))

            def answer(message: Message) -> None:
                """All functions in short, or, where the question is a name, those of that name in full."""
                name = message.data.decode("utf-8", "replace")
                self._intake.say(message.reply, msgspec.json.encode(rollout.in_full(name) if name else rollout.reports))

            await self._bus.subscribe(subjects.node(self._config.node, "functions"), answer)
            async with (
                Timetable.open(self._bus, lambda: rollout.triggers, rollout.on_change) as self._timetable,
                Nodes(self._bus).announced(lambda: self._seen(rollout), replicas=self._config.bus.replicas),
            ):
                yield

    def _seen(self, rollout: Rollout) -> NodeSeen:
        """What the list of nodes says of this one."""
        return NodeSeen(
            name=self._config.node,
            host=socket.gethostname(),
            version=__version__,
            since=self._since,
            slots=self._config.pool.slots_or_default,
            functions=rollout.served,
        )

    def _function(self, key: tuple[str, str]) -> FunctionVersion | None:
        return self._rollout.function(key) if self._rollout is not None else None

    @property
    def absent(self) -> str:
        """What is away or wrong and stops nothing, in words; "" where nothing is."""
        return "; ".join(filter(None, (clock.problem(self._bus), self._questions.absent)))

    @property
    def drained(self) -> Drained:
        """What its stop came to, once it has."""
        return self._intake.drained

    async def metrics(self) -> bytes:
        """The text of one scrape."""
        return await exposition(self._questions.tally, partial(self._questions.snapshot, self._config.pool.slots_or_default))

    @property
    def building(self) -> tuple[str, ...]:
        return self._pool.building


def _secrets(config: Config) -> Secrets:
    """What `[secrets]` names; before anything is started, which would inherit those of the environment. Raises ConfigInvalid."""
    if config.secrets.folder or config.secrets.provider == "environment":
        show_nothing()
    return Secrets(config.secrets)


def _attempts(config: Config, large: LargeBodies, *, pool: WorkerPool, speech: Speech) -> Attempts:
    prices = config.prices
    table = PriceTable(version=prices.version, cpu_hour=prices.cpu_hour, gib_hour=prices.gib_hour, gpu_hour=prices.gpu_hour)
    billing = Billing(table, node=config.node, bill_loading=prices.bill_loading)
    return Attempts(pool, billing, speech, tally=Tally(), large=large, tenants=Tenants(config.tenants))


def _dispatcher(
    bus: Bus, attempts: Attempts, outcomes: Outcomes, *, speech: Speech, usage: UsageRecords, captured: dict[str, str], keys: Keys
) -> Dispatcher:
    letters, schedules = Letters(bus), Schedules(bus)
    dispatcher = Dispatcher(attempts, outcomes, letters=letters, schedules=schedules, speech=speech, usage=usage, captured=captured)
    dispatcher.keyed = KeyedCalls(bus, keys, outcomes=outcomes, speech=speech)
    dispatcher.now = bus.now
    return dispatcher


def _environments(config: Config) -> Environments:
    return CurrentInterpreter() if config.environments == "current" else Builder(config.state / "environments")


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
