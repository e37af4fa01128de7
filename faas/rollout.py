"""What this node serves: the registry, made true. Deploys the node's own folder once, when it starts, and follows the registry from then on.

Nothing here writes to the registry but that one act, so nodes with different folders never fight. A version that cannot be served here leaves the
one before it serving, and says why. How a version is swapped under what runs is the pool's and the intake's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import structlog

from faas.bus import consumers, streams
from faas.bus.armed import View
from faas.bus.connection import Bus
from faas.bus.declared import BUNDLES_BYTES, BUNDLES_SHARE
from faas.bus.listing import owner
from faas.concurrency import side_by_side
from faas.errors import BusUnavailable, DeployRefused, FaasError
from faas.intake import Intake
from faas.model import FunctionReport, FunctionVersion
from faas.place import Environments, Place
from faas.pool.pool import WorkerPool
from faas.registry.declared import in_effect
from faas.registry.hooks import Hooks, contradictions, hooks_of
from faas.registry.packing import unpack_for
from faas.registry.registry import Change, Key, Registration, Registry, Revision
from faas.registry.reports import report_of, unserved, with_error
from faas.triggers import Trigger

log = structlog.get_logger()

RELIST_S = 5.0
"""So often the registry is looked at behind the messages that announce a change: any of them may have been lost."""
AGAIN_S = 0.02
"""After an announcement with nothing behind it, four times longer each time: it is heard as soon as it is published, and stored a moment later."""


@dataclass(slots=True, eq=False)
class _Standing:
    """How one function of the registry stands on this node."""

    registration: Registration
    problem: str = ""  # why its current version cannot be served here
    may_pass: bool = False  # the problem may go away without another deploy, so it is looked at again
    file: str = ""  # where the version with the problem is declared
    seen: FunctionVersion | None = field(default=None)  # that version, where it could be read


class Rollout:
    """`open` it on a node's parts; it serves when it is open, and follows the registry until it is left."""

    def __init__(
        self,
        place: Place,
        bus: Bus,
        *,
        pool: WorkerPool,
        intake: Intake,
        environments: Environments,
        captured: dict[str, str],
        on_hooks: Callable[[Hooks], None],
    ) -> None:
        self._place, self._bus, self._pool, self._intake = place, bus, pool, intake
        self._environments, self._captured = environments, captured
        self._registry = Registry(bus)
        self._folder = {function.key: function for function in place.folder.functions} if place.folder is not None else {}
        self._unfit: dict[Key, str] = {}  # functions of the folder that were not deployed, and why
        self._known: dict[Key, _Standing] = {}
        self._served: dict[Key, FunctionVersion] = {}
        self._on_hooks = on_hooks
        self._bucket, self._revision = "", 0  # which one was read, and how far
        self._declared = False  # whether the streams are there
        # Whether others may have written the subjects of FAAS_EVENTS in the moment in which this node did: the last one wins, so it looks again.
        self._unsure = False
        self._look = asyncio.Event()
        self.on_change: list[Callable[[], None]] = []  # the registry says something else now, or more of it is served

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        place: Place,
        bus: Bus,
        *,
        pool: WorkerPool,
        intake: Intake,
        environments: Environments,
        captured: dict[str, str],
        on_hooks: Callable[[Hooks], None],
    ) -> AsyncIterator[Rollout]:
        """Deploy the folder, serve all that there is, and follow; `on_hooks` gets the webhooks that are served, at each change. Raises BusUnavailable."""
        rollout = cls(place, bus, pool=pool, intake=intake, environments=environments, captured=captured, on_hooks=on_hooks)
        await rollout._ensure_buckets()
        hint: Callable[[object], None] = lambda _: rollout._look.set()  # noqa: E731
        subscription = await bus.subscribe(rollout._registry.subjects, hint)
        bus.on_reconnect.append(rollout._look.set)  # what was announced meanwhile was not heard
        await rollout._deploy_folder()
        await rollout._catch_up()
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(rollout._follow())
                try:
                    yield rollout
                finally:
                    following.cancel()
        finally:
            bus.on_reconnect.remove(rollout._look.set)
            await subscription.unsubscribe()

    async def _ensure_buckets(self) -> None:
        store_bytes = self._place.store_bytes
        bundle_bytes = BUNDLES_BYTES if store_bytes is None else min(BUNDLES_BYTES, int(store_bytes * BUNDLES_SHARE))
        await self._registry.ensure(replicas=self._place.bus.replicas, bundle_bytes=bundle_bytes, bounded=store_bytes is not None)

    # ------------------------------------------------------------ the folder of this node, once

    async def _deploy_folder(self) -> None:
        """Deploy what has changed in the folder since this node deployed it last; withdraw what has left it, and nobody else deployed since."""
        place = self._place
        if place.folder is None:
            return
        used = {function.spec.runtime for function in place.folder.functions}
        for warning in self._environments.warnings([profile for name, profile in place.profiles.items() if name in used]):
            log.warning("lock.stale", warning=warning)
        unfit = await self._environments.problems(place.folder.functions, place.profiles)
        self._unfit = {key: f"{self._folder[key].file}: dependencies: {why}" for key, why in unfit.items()}
        registered = {registration.key: registration for registration in await self._registry.registrations()}
        fit = [function for function in place.folder.functions if function.key not in self._unfit]
        await side_by_side([self._deploy(function, registered.get(function.key)) for function in fit])
        broken = {report.name for report in place.folder.invalid}
        for key, registration in registered.items():
            if key not in self._folder and key[1] not in broken and not registration.withdrawn:
                await self._withdraw(registration)

    async def _deploy(self, function: FunctionVersion, registered: Registration | None) -> None:
        if registered is not None and registered.version == function.version and not registered.withdrawn:
            return
        mine = registered.last_of(self._place.node) if registered is not None else None
        if registered is not None and mine is not None and mine.version == function.version and (why := self._since_then(registered, mine)):
            log.warning("function.not_deployed", function=function.spec.name, version=function.version, why=why)
            return
        try:
            if await self._registry.deploy(function, by=self._place.node):
                log.info("function.deployed", function=function.spec.name, version=function.version)
        except DeployRefused as error:
            log.warning("function.not_deployed", function=function.spec.name, version=function.version, why=str(error))

    def _since_then(self, registered: Registration, mine: Revision) -> str:
        """What others have done since this node deployed what its folder has still; "" where they did nothing."""
        way_out = f"and this folder has not changed; `faas deploy {registered.name}` serves its version"
        if registered.withdrawn:
            return f"{registered.withdrawn_by} withdrew it since, {way_out}" if registered.withdrawn_by != self._place.node else ""
        if registered.version == mine.version:
            return ""
        return f"{registered.current.by} had the version {registered.version} served since, {way_out}"

    async def _withdraw(self, registration: Registration) -> None:
        if registration.current.by != self._place.node:
            return
        try:
            await self._registry.withdraw(registration.key, by=self._place.node)
            log.warning("function.withdrawn", function=registration.name, why="it is no longer in the folder of this node")
        except FaasError as error:
            log.warning("function.not_withdrawn", function=registration.name, why=str(error))

    # ------------------------------------------------------------ the registry, from then on

    async def _follow(self) -> None:
        wait_s = RELIST_S
        while True:
            heard, changed = True, False
            try:
                async with asyncio.timeout(wait_s):
                    await self._look.wait()
            except TimeoutError:
                heard = False  # look all the same
            quiet = not heard and wait_s == RELIST_S
            self._look.clear()
            try:
                changed = await self._catch_up()
                if quiet and self._unsure and not changed:
                    await self.declare()
                    self._unsure = False
            except FaasError as error:
                log.warning("registry.not_read", error=str(error))
            wait_s = RELIST_S if changed else AGAIN_S if heard else min(4 * wait_s, RELIST_S)

    async def _catch_up(self) -> bool:
        """Take up what has changed, and whether anything had; where that fails half-way it is all done again at the next look.

        Raises BusUnavailable.
        """
        bucket, last = await self._registry.standing()
        if bucket != self._bucket:
            self._bucket, self._revision = bucket, 0
        changes = [change async for change in self._registry.changes(self._revision)] if last != self._revision else []
        again = [standing.registration for standing in self._known.values() if standing.may_pass]
        if changes or again or not self._declared:
            await self._take_up(changes, again)
            self._unsure = self._unsure or bool(changes)
        self._revision = max([last, *(change.revision for change in changes)])
        if changes or again:
            for tell in self.on_change:
                tell()
        return bool(changes)

    async def _take_up(self, changes: Sequence[Change], again: Iterable[Registration]) -> None:
        wanted = {registration.key: registration for registration in again}
        left = False
        for change in changes:
            if not change.readable:
                continue  # written by a later version, or by hand: what is served stays, and what waits for it
            key, registration = change.key, change.registration
            wanted.pop(key, None)
            if registration is None or registration.withdrawn:
                left |= await self._leave(key, registration)
            elif key not in self._served or self._served[key].version != registration.version or self._known[key].problem:
                wanted[key] = registration
            else:
                self._known[key].registration = registration
        found = await side_by_side([self._find(registration) for _, registration in sorted(wanted.items())])
        await self._serve([standing for standing in found if standing.seen is not None and not standing.problem])
        for standing in found:
            key, known = standing.registration.key, self._known.get(standing.registration.key)
            if standing.problem and (known is None or known.problem != standing.problem):
                log.warning("function.invalid", function=key[1], version=standing.registration.version, error=standing.problem)
            self._known[key] = standing
        if left:
            await streams.uncover(self._bus, {owner(*key) for key, known in self._known.items() if known.registration.withdrawn})

    async def _leave(self, key: Key, registration: Registration | None) -> bool:
        """Take nothing new for a function; of one that was removed for good, not even what waits."""
        if registration is None:
            before = self._known.pop(key, None)
        else:
            before, self._known[key] = self._known.get(key), _Standing(registration)
        served = self._served.pop(key, None)
        self._on_hooks(hooks_of(self._served.values()))
        await self._intake.withdraw(key)
        self._pool.withdraw(key)
        if registration is None and served is not None:
            borrowed = {trigger.stream for trigger in served.spec.triggers if trigger.stream}
            await consumers.drop_consumers(self._bus, *key, borrowed=borrowed)
        if served is not None:
            log.info("function.left", function=key[1], version=served.version)
        return registration is not None and (before is None or not before.registration.withdrawn)

    async def _find(self, registration: Registration) -> _Standing:
        """The version that the registry names: of this node's folder where it is the same, else from its bundle."""
        standing, place = _Standing(registration), self._place
        own = self._folder.get(registration.key)
        try:
            if own is not None and own.version == registration.version:
                standing.seen = own
            else:
                data = await self._registry.bundle(registration.current)
                standing.seen = await asyncio.to_thread(
                    unpack_for, registration.key, data, registration.version, profiles=place.profiles, mounts=place.mounts
                )
            standing.problem = self._missing_mount(standing.seen) or place.tenants.refusal(standing.seen)
        except BusUnavailable:
            raise
        except FaasError as error:
            standing.problem = str(error)
        return standing

    def _missing_mount(self, function: FunctionVersion) -> str:
        for index, mount in enumerate(function.mounts):
            if mount.copied and not mount.source and not (self._place.copies / mount.digest).is_dir():
                source = function.spec.mounts[index].source
                return (
                    f"{function.file}: mount[{index}].source: {source} lies in the function's folder, and is not carried to other nodes yet; "
                    "use an absolute folder that [node] mounts allows, or start this node on the same functions folder"
                )
        return ""

    async def _serve(self, sound: list[_Standing]) -> None:
        """Declare streams and consumers, then take up every version that can be served; the others get their problem."""
        if not sound and self._declared:
            return
        functions = {standing.registration.key: standing.seen for standing in sound if standing.seen is not None}
        unusable = await self._environments.problems(list(functions.values()), self._place.profiles)
        registered = [*self._known.values(), *sound]
        clashing = contradictions({standing.registration.key: standing.registration for standing in registered}.values())
        usable = [function for key, function in functions.items() if key not in unusable and key not in clashing]
        first = 1 + await streams.last_sequence(self._bus)
        conflicts = await streams.declare(
            self._bus, [function.spec for function in usable], self._place.bus, store_bytes=self._place.store_bytes
        )
        self._declared = True
        served = [function for function in usable if function.key not in conflicts]
        specs = [function.spec for function in served]
        found = await consumers.ensure_consumers(self._bus, specs, self._place.bus, first_sequence=first)
        for standing in sound:
            key = standing.registration.key
            if key in unusable:
                standing.problem = f"{functions[key].file}: dependencies: {unusable[key]}"
            elif key in clashing:
                standing.problem, standing.may_pass = f"{functions[key].file}: trigger.webhook: {clashing[key]}", True
            elif key in conflicts:
                standing.problem, standing.may_pass = f"{functions[key].file}: trigger.subject: {conflicts[key]}", True
        for function in served:
            output = function.spec.output.publish
            if output and (stream := await streams.stream_capturing(self._bus, output)) is not None:
                self._captured[output] = stream
            self._pool.serve(function, self._place.profiles[function.spec.runtime], eager=self._place.eager)
            await self._intake.serve(function, found[function.key])
            if (before := self._served.get(function.key)) is not None:
                log.info("function.replaced", function=function.spec.name, version=function.version, before=before.version)
            self._served[function.key] = function
        self._on_hooks(hooks_of(self._served.values()))

    async def declare(self) -> None:
        """Make the streams of what is served, and the buckets, what they must be, once more. Raises BusUnavailable."""
        await self._ensure_buckets()
        specs = [function.spec for function in self._served.values()]
        await streams.declare(self._bus, specs, self._place.bus, store_bytes=self._place.store_bytes)

    # ------------------------------------------------------------ what there is to say

    def function(self, key: Key) -> FunctionVersion | None:
        """A function as it is served here."""
        return self._served.get(key)

    @property
    def triggers(self) -> tuple[View, dict[Key, tuple[Trigger, ...]], frozenset[Key]]:
        """How far the registry was read, the triggers of every function that it has and that is not withdrawn, and whose this node serves."""
        present = {key: known.registration.current.triggers for key, known in self._known.items() if not known.registration.withdrawn}
        return View(self._bucket, self._revision), present, frozenset(self._served)

    @property
    def served(self) -> tuple[str, ...]:
        """The names of what this node serves."""
        return tuple(sorted(name for _, name in self._served))

    @property
    def reports(self) -> list[FunctionReport]:
        """Every function that is registered and not withdrawn, and what of the folder is invalid, by tenant and name."""
        weak = self._place.not_enforced
        found = {
            key: report_of(standing.registration, self._served.get(key), standing.problem, not_enforced=weak)
            for key, standing in self._known.items()
            if not standing.registration.withdrawn
        }
        for report in self._place.folder.invalid if self._place.folder is not None else ():
            key = (report.tenant, report.name)
            found[key] = with_error(found[key], report.error) if key in found else report
        for key, error in self._unfit.items():
            found[key] = with_error(found.get(key) or unserved(self._folder[key], not_enforced=weak), error)
        return [found[key] for key in sorted(found)]

    def in_full(self, name: str = "") -> list[FunctionReport]:
        """The functions of a name ("": all), with all that is known of them here."""
        return [self._in_full(report) for report in self.reports if name in ("", report.name)]

    def _in_full(self, report: FunctionReport) -> FunctionReport:
        function = self._served.get((report.tenant, report.name))
        if function is None:
            return report
        seen = self._pool.seen(function.key)
        return msgspec.structs.replace(
            report,
            declaration=in_effect(function.spec),
            environment=seen.environment,
            secrets=seen.secrets,
            loaded=seen.schemas is not None,
            input_schema=seen.schemas.input if seen.schemas else "",
            output_schema=seen.schemas.output if seen.schemas else "",
        )
