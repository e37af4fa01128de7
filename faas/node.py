"""The parts of a node that run functions, put together on one bus: from usage and workers at the bottom to the intake at the top.

The other half of the composition root: sees the whole configuration, as `app` does, and knows no server and no address.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import msgspec

from faas import subjects
from faas.accounting.records import UsageRecords
from faas.budget.prices import PriceTable
from faas.bus import clock
from faas.bus.connection import Bus, Message
from faas.bus.keys import Keys
from faas.bus.letters import Letters
from faas.bus.logs import LogLines
from faas.bus.outcomes import Outcomes
from faas.bus.payloads import Payloads
from faas.bus.pull import Heartbeats
from faas.bus.schedules import Schedules
from faas.bus.service import Service
from faas.bus.speech import Speech
from faas.cancelling import Cancelling
from faas.config import Config
from faas.dispatcher import Dispatcher
from faas.environments.build import Builder, BuildProgress
from faas.environments.current import CurrentInterpreter
from faas.gateway.functions import Functions
from faas.gateway.metrics import exposition
from faas.gateway.publishing import EventStore
from faas.gateway.routes import Route
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
from faas.pool.printed import tell_output
from faas.pool.process import ProcessBackend
from faas.questions import Questions
from faas.registry.nodes import Nodes, NodeSeen
from faas.registry.spec import Reading
from faas.rollout import Rollout
from faas.security.secrets import Secrets
from faas.security.tenants import Tenants
from faas.security.tokens import Tokens
from faas.tally import Tally
from faas.timetable import Timetable
from faas.version import __version__

GRACE_S = 10.0
"""How long running attempts may take to finish after the first SIGTERM."""

Environments = Builder | CurrentInterpreter
OnBuild = Callable[[BuildProgress], None]


class Node:
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
    async def open(cls, config: Config, bus: Bus, on_build: OnBuild, *, provider: Secrets, keys: Keys) -> AsyncIterator[Node]:
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
    dispatcher.keyed = KeyedCalls(bus, keys, outcomes=outcomes, speech=speech, holds=dispatcher.unended.holds)
    dispatcher.now = bus.now
    return dispatcher


def _environments(config: Config) -> Environments:
    return CurrentInterpreter() if config.environments == "current" else Builder(config.state / "environments")
