"""How the pool stands at one moment: its slots, workers and sandboxes in numbers, and what an invocation that waits is waiting for. Reads the pool and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from faas.pool.pool import WorkerPool

STOPPING = "the node stops: it is given back"


@dataclass(slots=True, frozen=True, kw_only=True)
class Standing:
    """`workers` by (tenant, function, state), `sandboxes` by (profile, state)."""

    free: int
    leased: int
    workers: dict[tuple[str, str, str], int]
    sandboxes: dict[tuple[str, str], int]
    spares: dict[str, int]


def standing_of(pool: WorkerPool) -> Standing:
    """The numbers of this moment."""
    workers: dict[tuple[str, str, str], int] = {}
    sandboxes: dict[tuple[str, str], int] = {}
    for (tenant, function), served in pool._served.items():
        workers[tenant, function, "idle"] = len(served.idle)
        workers[tenant, function, "leased"] = served.leased
        workers[tenant, function, "prewarming"] = served.prewarming
    for profile, held in pool._profiles.items():
        sandboxes[profile, "bound"] = held._bound
        sandboxes[profile, "generic"] = len(held._generic)
        sandboxes[profile, "starting"] = held._starting
    return Standing(
        free=pool._free,
        leased=len(pool._leases),
        workers=workers,
        sandboxes=sandboxes,
        spares={profile: sum(len(generic.spares) for generic in held._generic) for profile, held in pool._profiles.items()},
    )


def obstacle(pool: WorkerPool, key: tuple[str, str]) -> str:
    """Why an invocation of the function that waits on this node has no worker yet."""
    served = pool._served.get(key)
    if served is None or pool._draining:
        return STOPPING if served is not None else "its function is not served here any more"
    if not served.sandboxes.is_ready:
        return f"the environment of its profile {served.sandboxes.profile.name} is being built or started"
    if served.overlay is not None and served.overlay.environment is None:
        return "the packages of its function are being built"
    workers = served.function.spec.scale.max_workers
    if served.leased >= workers:
        return f"its function is at scale.max_workers: {served.leased} of {workers} workers are busy"
    if pool._free <= 0:
        return f"no slot of the node is free: {len(pool._leases)} attempts run"
    if not (served.idle or served.bound or served.promised or served.sandboxes.has_room):
        limit = served.sandboxes.profile.pool.max
        return f"its profile {served.sandboxes.profile.name} is at pool.max: {limit} sandboxes are busy"
    return "a worker is being started for it"
