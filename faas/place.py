"""What of a node decides what it can serve: its name, profiles, folder, mounts and tenants. Values; what is served is the rollout's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from faas.config import BusConfig
from faas.model import FunctionVersion, RuntimeProfile
from faas.registry.registry import Key
from faas.registry.spec import Reading
from faas.security.tenants import Tenants


class Environments(Protocol):
    """What is asked of whoever makes environments."""

    async def problems(self, functions: Sequence[FunctionVersion], profiles: Mapping[str, RuntimeProfile]) -> dict[Key, str]:
        """By (tenant, function): why it cannot have its dependencies here."""

    def warnings(self, profiles: Sequence[RuntimeProfile]) -> list[str]:
        """A sentence for each profile whose lock is stale."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Place:
    """What of this node decides what it can serve, and under which name it deploys. `folder` is None where it has none of its own."""

    node: str
    bus: BusConfig
    profiles: Mapping[str, RuntimeProfile]
    folder: Reading | None
    mounts: Sequence[str]  # folders of this machine that functions may mount
    tenants: Tenants
    copies: Path  # where copies of functions' own mounts lie
    store_bytes: int | None
    eager: bool
    not_enforced: tuple[str, ...]
