"""The registry: which version of every function all nodes serve, what was served before, and where its bundle lies.

A key of `FAAS_REGISTRY` for each function, changed by compare-and-swap alone, and only by a named act: a deploy, a roll-back, a removal, or the
start of a node with a folder of its own. Knows no folder and no worker.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

import msgspec
import structlog
from msgspec import Struct

from faas import subjects
from faas.bus.connection import Bus
from faas.bus.keyvalue import Entry, KeyValue
from faas.bus.objects import ObjectStore
from faas.errors import AlreadyStored, DeployRefused, NoSuchFunction, PayloadLost, SpecInvalid
from faas.model import NAME_PATTERN, FunctionVersion
from faas.registry.bundle import FOLDER_LIMIT_BYTES
from faas.registry.packing import pack
from faas.triggers import Trigger

log = structlog.get_logger()

HISTORY_LIMIT = 20
"""Versions of a function that can be rolled back to; bundles of older ones are deleted."""

BUNDLE_LIMIT_BYTES = 2 * FOLDER_LIMIT_BYTES
"""Of the files of a folder, and its declaration and lock beside them."""

Key = tuple[str, str]
"""(tenant, function)."""


class Revision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One deploy of a function. `bundle` is the name of an object, which ends in the digest of what is in it; `by` is a node, or USER@HOST."""

    version: str
    bundle: str
    size_bytes: int
    runtime: str
    triggers: tuple[Trigger, ...] = ()
    by: str
    at: str  # RFC 3339


class Registration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the registry says of one function; the last of its `history` is the version that is served, unless it is `withdrawn`."""

    tenant: str
    name: str
    version: str
    history: tuple[Revision, ...]
    withdrawn: bool = False
    withdrawn_by: str = ""

    @property
    def key(self) -> Key:
        return (self.tenant, self.name)

    @property
    def current(self) -> Revision:
        return self.history[-1]

    def last_of(self, by: str) -> Revision | None:
        """What this node or person deployed last, as far as the history goes back."""
        return next((revision for revision in reversed(self.history) if revision.by == by), None)


class Change(Struct, frozen=True):
    """A function whose registration is another now; None: it was removed, or is not `readable`, and then nothing is known of it.

    `revision` is what to go on reading from.
    """

    key: Key
    registration: Registration | None
    revision: int
    readable: bool = True


class Registry:
    """The registry of one bus. `ensure` it once; every change raises DeployRefused where somebody else was faster, BusUnavailable."""

    def __init__(self, bus: Bus) -> None:
        self._entries, self._bundles = KeyValue(bus, subjects.REGISTRY), ObjectStore(bus, subjects.BUNDLES)

    async def ensure(self, *, replicas: int, bundle_bytes: int, bounded: bool = True) -> None:
        """Make the buckets, or make them what they must be; without `bounded` they keep their sizes. Raises BusUnavailable in the server's words."""
        await self._entries.ensure(replicas=replicas)
        await self._bundles.ensure(replicas=replicas, max_bytes=bundle_bytes, bounded=bounded)

    async def present(self) -> bool:
        """Whether the buckets are there; a node makes them as the place that it runs in allows."""
        return await self._entries.present() and await self._bundles.present()

    # ------------------------------------------------------------ reading

    @property
    def subjects(self) -> str:
        """Where a change is heard of, as a reason to look."""
        return self._entries.subjects

    async def standing(self) -> tuple[str, int]:
        """Which registry it is, one that was deleted is another, and a number that grows with every change."""
        return await self._entries.standing()

    async def changes(self, since: int) -> AsyncIterator[Change]:
        """Every function that has changed after the revision `since`, as it is now; from 0 all there are."""
        async for entry in self._entries.since(since):
            key = _key(entry.key)
            if key is not None:
                registration = _registration(entry)
                yield Change(key, registration, entry.revision, readable=entry.deleted or registration is not None)

    async def registrations(self) -> list[Registration]:
        """All that there are, the withdrawn ones too, by tenant and name."""
        found = [change.registration async for change in self.changes(0) if change.registration is not None]
        return sorted(found, key=lambda registration: registration.key)

    async def bundle(self, revision: Revision) -> bytes:
        """The bytes that `packing` reads. Raises SpecInvalid where they are gone, BusUnavailable."""
        try:
            return await self._bundles.get(revision.bundle, limit_bytes=BUNDLE_LIMIT_BYTES)
        except PayloadLost as error:
            raise SpecInvalid(revision.version, "", f"its bundle is lost ({error}); deploy the function again") from error

    # ------------------------------------------------------------ changing

    async def deploy(self, function: FunctionVersion, *, by: str) -> bool:
        """Have this version served from now on; False where it is already, and its bundle is there."""
        key = function.key
        entry, before = await self._read(key)
        if (
            before is not None
            and not before.withdrawn
            and before.version == function.version
            and await self._bundles.has(before.current.bundle)
        ):
            return False
        data = pack(function)
        name = await self._bundles.put(".".join(key), data)
        spec = function.spec
        revision = Revision(
            version=function.version, bundle=name, size_bytes=len(data), runtime=spec.runtime, triggers=spec.triggers, by=by, at=_now()
        )
        await self._serve(key, revision, entry=entry, before=before)
        return True

    async def roll_back(self, key: Key, version: str = "", *, by: str) -> Registration:
        """Have an earlier version served; without `version` the one served before, or of a withdrawn function the last.

        `version` may be the beginning of one. Raises NoSuchFunction.
        """
        entry, before = await self._read(key)
        if before is None:
            raise NoSuchFunction(f"no function {key[1]} of tenant {key[0]} was ever deployed; `faas functions` lists what there is")
        fitting = [
            revision
            for revision in before.history
            if (revision.version.startswith(version) if version else before.withdrawn or revision.version != before.version)
        ]
        versions = ", ".join(dict.fromkeys(revision.version for revision in reversed(before.history)))
        if not fitting:
            wanted = f"no version {version}" if version else "no version before this one"
            raise DeployRefused(f"{before.name} has {wanted}; there are: {versions}")
        if version and len({revision.version for revision in fitting}) > 1:
            raise DeployRefused(f"{version} begins more than one version of {before.name}; there are: {versions}")
        if fitting[-1].version == before.version and not before.withdrawn:
            raise DeployRefused(f"{before.name} serves {before.version} already; there are: {versions}")
        return await self._serve(key, msgspec.structs.replace(fitting[-1], by=by, at=_now()), entry=entry, before=before)

    async def withdraw(self, key: Key, *, by: str) -> Registration:
        """Have a function take nothing new; what it has accepted waits for it. Raises NoSuchFunction."""
        entry, before = await self._read(key)
        if before is None:
            raise NoSuchFunction(f"no function {key[1]} of tenant {key[0]} is registered; `faas functions` lists what there is")
        after = msgspec.structs.replace(before, withdrawn=True, withdrawn_by=by)
        if not before.withdrawn:
            await self._swap(key, entry, after)
        return after

    async def forget(self, key: Key) -> Registration | None:
        """Remove a function with its history and its bundles; what it was, None where it was not there."""
        entry, before = await self._read(key)
        if before is None or entry is None:
            return None
        try:
            await self._entries.delete(".".join(key), expected=entry.revision)
        except AlreadyStored as error:
            raise await self._faster(key) from error
        await self._drop_bundles(revision.bundle for revision in before.history)
        return before

    async def _serve(self, key: Key, revision: Revision, *, entry: Entry | None, before: Registration | None) -> Registration:
        history = (*(before.history if before is not None else ()), revision)
        after = Registration(tenant=key[0], name=key[1], version=revision.version, history=history[-HISTORY_LIMIT:])
        await self._swap(key, entry, after)
        kept = {revision.bundle for revision in after.history}
        await self._drop_bundles(old.bundle for old in history[:-HISTORY_LIMIT] if old.bundle not in kept)
        return after

    async def _swap(self, key: Key, entry: Entry | None, after: Registration) -> None:
        try:
            await self._entries.put(".".join(key), msgspec.json.encode(after), expected=entry.revision if entry is not None else 0)
        except AlreadyStored as error:
            raise await self._faster(key) from error

    async def _faster(self, key: Key) -> DeployRefused:
        _, now = await self._read(key)
        if now is None:
            return DeployRefused(f"{key[1]} was removed in the same moment; look at `faas functions`, and try again")
        what = f"withdrawn by {now.withdrawn_by}" if now.withdrawn else f"deployed by {now.current.by} as version {now.version}"
        return DeployRefused(f"{key[1]} was {what} in the same moment; look at `faas functions {key[1]}`, and try again")

    async def _read(self, key: Key) -> tuple[Entry | None, Registration | None]:
        if not all(re.fullmatch(NAME_PATTERN, name) for name in key):
            return None, None  # a wildcard would find another function, and what is then written would be nobody's
        entry = await self._entries.entry(".".join(key))
        return entry, _registration(entry) if entry is not None else None

    async def _drop_bundles(self, names: Iterable[str]) -> None:
        """Two functions may share one, so those that others name stay."""
        gone = set(names)
        if gone:
            gone -= {revision.bundle for registration in await self.registrations() for revision in registration.history}
        for name in gone:
            await self._bundles.delete(name)


def _key(text: str) -> Key | None:
    tenant, dot, name = text.partition(".")
    return (tenant, name) if dot and name else None


def _registration(entry: Entry) -> Registration | None:
    """None of a key that is gone, and of one that is no registration: somebody wrote it by hand, and one key must not end a node."""
    if entry.deleted:
        return None
    try:
        found = msgspec.json.decode(entry.value, type=Registration)
    except (msgspec.DecodeError, RecursionError) as error:
        log.warning("registration.unreadable", key=entry.key, error=str(error))
        return None
    if not found.history or found.key != _key(entry.key):
        log.warning("registration.unreadable", key=entry.key, error="it names no version, or another function")
        return None
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
