"""The world of the other faults on three nats-servers, whose streams have three replicas; and the same with a network that can be cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from cluster import Cluster, running_cluster
from network import Network
from world import World

SERVERS = ("n0", "n1", "n2")
OUTSIDE = "outside"
"""Where the publisher is."""


@dataclass
class ClusteredWorld(World):
    """Three servers on this machine, which `cluster` kills and starts; nodes ask for three replicas."""

    cluster: Cluster = field(default_factory=Cluster)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start_server(self) -> None:
        self.cluster = await self._stack.enter_async_context(running_cluster(self.folder / "cluster", self.places()))
        self.url = self.cluster.url
        self._client = await self._connect()

    def places(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Where the servers run; nothing: here."""
        return {}

    async def node(self, name: str, *, crash_at: str = "", environ: Mapping[str, str] | None = None) -> None:
        await super().node(name, crash_at=crash_at, environ={"FAAS_BUS__REPLICAS": "3", **(environ or {})})

    async def __aexit__(self, *error: object) -> None:
        try:
            await super().__aexit__(*error)
        finally:
            await self._stack.aclose()


@dataclass
class PartedWorld(ClusteredWorld):
    """Servers and nodes in network namespaces: `network.cut` and `network.mend` by name. The publisher is on the switch too."""

    node_names: Iterable[str] = ()
    environments: str = "current"  # no package index can be reached from in there
    network: Network = field(init=False)

    async def __aenter__(self) -> PartedWorld:
        """Raises NoNetwork where namespaces may not be made."""
        self.network = self._stack.enter_context(Network.open(OUTSIDE, *SERVERS, *self.node_names))
        self._stack.enter_context(self.network.inside(OUTSIDE))
        try:
            await super().__aenter__()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    def places(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return {name: (self.network.address(name), self.network.way(name)) for name in SERVERS}

    def way(self, name: str) -> tuple[str, ...]:
        return self.network.way(name)
