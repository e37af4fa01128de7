"""What one attempt holds of the pool, and what the pool holds of one function. Values of the pool; they decide nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

import msgspec

from faas.errors import FaasError
from faas.model import Environment, FunctionVersion, Start
from faas.pool.backend import Sandbox
from faas.pool.grants import Grants
from faas.pool.overlays import Overlay
from faas.pool.sandboxes import Sandboxes
from faas.pool.worker import Worker
from faas.scheduling.fair_queue import Bill
from faas.worker import wire

SCHEMA_CHARACTERS = 32 * 1024
"""Of a JSON Schema: two of them go into one answer on the bus, and who runs in a sandbox can report anything."""

FIRST_HOLD_S = 0.1
"""What an attempt counts for whose function has had none: some cold start. The moving average soon says better."""

AHEAD_S = 0.010
"""Events are asked for ahead of a free slot as far as this much work goes: it hides a round trip to the bus where attempts
are short, and leaves the events of a slow function to a node that has a slot."""
AHEAD_LIMIT = 16

Stage = Callable[[FunctionVersion], Awaitable[Mapping[str, str]]]
"""Puts the mounts of a function in place: target -> absolute path. Raises EnvironmentFailed."""


class Draining(FaasError):
    """The node stops, or the function was withdrawn: nothing more is started here; another node, or the next start, takes what waits."""

    code = "draining"


@dataclass(slots=True, frozen=True)
class Schemas:
    """JSON Schema text of a handler's input and output as a worker reported them, "" where there is none that can be shown."""

    input: str
    output: str

    @classmethod
    def of(cls, loaded: wire.Loaded) -> Schemas:
        """The author's code runs where these come from: what is no JSON, or too long for an answer on the bus, is dropped."""
        return cls(_shown(loaded.input_schema), _shown(loaded.output_schema))


def _shown(schema: str) -> str:
    try:
        msgspec.json.decode(schema[: SCHEMA_CHARACTERS + 1], type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ""
    return schema if len(schema) <= SCHEMA_CHARACTERS else ""


@dataclass(slots=True, frozen=True)
class Seen:
    """What a node has seen of a function: `environment` is the digest of what its workers run in, "" before it is built."""

    environment: str
    schemas: Schemas | None  # None until a worker has loaded it
    secrets: Mapping[str, str]  # by name: "version …", or why it is missing


@dataclass(slots=True, eq=False)
class Served:
    """What this node holds for one function version. `leased` counts attempts that hold a slot, their worker there or on its way."""

    function: FunctionVersion
    sandboxes: Sandboxes
    limits: tuple[int, float, int]  # memory in bytes, cpus, pids: the function's, at most the profile's
    overlay: Overlay | None = None  # its own packages, where it has any
    stage: Stage | None = None  # puts its mounts in place
    grants: Grants = field(default_factory=Grants)
    mounts: Mapping[str, str] = field(default_factory=dict)  # target -> absolute path, once they are
    sandbox: Sandbox | None = None
    idle: list[Worker] = field(default_factory=list)  # the last one given back is the next one leased
    leased: int = 0
    promised: bool = False  # it has a turn and no sandbox yet: room for one is kept
    prewarming: int = 0
    idle_since_monotonic: float = 0.0
    hold_s: float = math.inf  # moving average of lease start to end; infinite until the first has ended
    binding: asyncio.Lock = field(default_factory=asyncio.Lock)
    schemas: Schemas | None = None
    left: bool = False  # another version is served, or none: what runs ends, and nothing of it is kept
    waiting: set[asyncio.Future[Served]] = field(default_factory=set)  # turns that were asked for while it was served

    @property
    def environment(self) -> Environment:
        """What its workers run in; only once it is ready."""
        environment = (self.overlay or self.sandboxes).environment
        assert environment is not None
        return environment

    @property
    def seen(self) -> Seen:
        built = (self.overlay or self.sandboxes).environment
        return Seen(built.digest if built is not None else "", self.schemas, self.grants.told(self.function.spec))

    async def ready(self) -> bool:
        """Wait until a worker can be started without building anything; True where it had to. Raises EnvironmentFailed."""
        cold = False
        if not self.sandboxes.is_ready or self.function.mounts or (self.overlay is not None and self.overlay.environment is None):
            cold = await self.sandboxes.ready()
            if self.stage is not None and self.function.mounts:
                self.mounts = await self.stage(self.function)
            cold = (self.overlay is not None and await self.overlay.ready()) or cold
        self.grants.version(self.function.spec)  # last: an environment is built whether they are there or not
        return cold

    @property
    def bill(self) -> Bill:
        """What a start of it counts for in the fair queue: seconds of a slot as attempts took lately, and the function's weight."""
        return FIRST_HOLD_S if math.isinf(self.hold_s) else self.hold_s, float(self.function.spec.scale.weight)

    def appetite(self, free_slots: int) -> int:
        """How many events of it can be used soon, at least one."""
        workers = self.function.spec.scale.max_workers
        free = max(0, min(free_slots, workers - self.leased))
        return max(1, free + min(AHEAD_LIMIT, int(AHEAD_S * workers / max(self.hold_s, 1e-6))))

    def pop_idle(self) -> Worker | None:
        """The worker given back last; one that has died meanwhile is passed over, its end need not be settled yet, and one whose secrets have changed retires."""
        while self.idle:
            worker = self.idle.pop()
            if self.has_expired(worker):
                worker.retire()
            elif worker.state != "dead":
                return worker
        return None

    def has_expired(self, worker: Worker) -> bool:
        """Whether it holds other secrets than it would be granted now."""
        spec = self.function.spec
        return bool(spec.secrets) and not self.grants.is_current(spec, worker.secrets)

    @property
    def bound(self) -> bool:
        """Whether it has a living sandbox."""
        return self.sandbox is not None and self.sandbox.alive


@dataclass(slots=True, eq=False)
class Lease:
    """The exclusive right to one worker for one attempt. Leaving it gives the worker back idle after a clean end, else kills it."""

    give_back: Callable[[Lease], None]
    served: Served
    worker: Worker
    start: Start
    since_monotonic: float
    clean: bool = False
    drained: bool = False  # the node killed it because its shutdown grace ran out

    @property
    def environment(self) -> Environment:
        return self.served.environment

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.give_back(self)


def load_message(served: Served) -> wire.Load:
    """What makes a spare a worker of a function version; its environment is there. A worker sends no result above the limit."""
    function, spec = served.function, served.function.spec
    return wire.Load(
        function=spec.name,
        tenant=spec.tenant,
        version=function.version,
        handler=spec.handler,
        files=tuple(wire.File(file.path, file.data) for file in function.files),
        tags=dict(spec.tags),
        result_limit_bytes=int(spec.limits.payload_bytes),
        overlay=served.environment.overlay,
        env=dict(spec.env),
        mounts=dict(served.mounts),
    )


def confide(served: Served, worker: Worker) -> wire.Load:
    """The same with the secrets of the function, which the worker then holds. Raises SecretMissing."""
    granted = served.grants.granted(served.function.spec)
    worker.grant(granted)
    return msgspec.structs.replace(load_message(served), secrets=granted.values)
