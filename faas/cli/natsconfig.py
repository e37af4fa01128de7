"""`faas nats-config`: users and permissions for a nats-server that others run, and a seed file for each. Shows no seed, and needs no node."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from faas.cli.options import Json, console, print_json
from faas.errors import ConfigInvalid

if TYPE_CHECKING:
    from faas.config import TenantConfig
    from faas.security.permissions import User

Names = tuple[str, ...]
STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")


def nats_config(
    *,
    config: Annotated[Path, Parameter(help="Configuration file that lists the tenants.")] = Path("faas.toml"),
    out: Annotated[Path, Parameter(help="Folder of the seeds and of faas-users.conf.")] = Path("nats"),
    node: Annotated[Names, Parameter(help="A node with a key of its own, by its --node name; else all have one.", negative="")] = (),
    stream: Annotated[Names, Parameter(help="A stream of yours that functions take events from.", negative="")] = (),
    rotate: Annotated[Names, Parameter(help="Give this user another key; the one before holds until --retire.", negative="")] = (),
    retire: Annotated[Names, Parameter(help="Let the key of this user before its last --rotate end.", negative="")] = (),
    json: Json = False,
) -> int:
    """Write users and permissions for a nats-server."""
    from faas.config import NODE_NAME, load_file
    from faas.security.keyring import TENANT, Keyring, user_names, users_of

    tenants = load_file(config if config.exists() else None, os.environ).tenant
    _check(tenants, config)
    ring = Keyring(out)
    try:
        ring.prepare()
        nodes, streams = ring.names("nodes", node, NODE_NAME), ring.names("streams", stream, STREAM_NAME)
        for user in rotate:
            ring.rotate(user)
        for user in retire:
            ring.retire(user)
        keys = [ring.key(user) for user in user_names(tenants, nodes)]
        users = list(users_of(keys, tenants, streams))
        path = ring.write(users)
    except OSError as error:
        raise ConfigInvalid(f"--out {out}: {error.filename or out} cannot be written: {error.strerror}") from error
    unused = sorted(set(ring.users()) - {key.user for key in keys})
    files = {key.user: key.seed_file for key in keys}
    if json:
        print_json({"config": str(path), "users": [_described(user, files[user.name]) for user in users], "unused": unused})
        return 0
    _print(users, files)
    made = [key.user for key in keys if key.made]
    console().print(f"wrote {path}" + (f", and new keys of {', '.join(made)}" if made else ""))
    for user in unused:
        console().print(f"{out / user}.nk is of no user any more; delete it")
    console().print(
        f"copy {path.name} beside the configuration of nats-server, write include ./{path.name} there, and reload: nats-server --signal reload"
    )
    if any(user.startswith(TENANT) for user in made):
        console().print("a tenant is new: reload twice, or restart; nats-server gives a new account what it imports at the second reload")
    return 0


def _check(tenants: Sequence[TenantConfig], config: Path) -> None:
    """Raises ConfigInvalid for a tenant whose subjects nobody has written down: no permission can say "all but $* and faas.*"."""
    from faas.subjects import overlaps, reduce_by_containment

    for n, tenant in enumerate(tenants):
        for key, given in (("subscribe", tenant.subscribe), ("publish", tenant.publish)):
            if given is None:
                raise ConfigInvalid(
                    f"{config.name}: tenant[{n}].{key}: is missing, and a permission has to name its subjects; "
                    f'write {key} = ["images.>"], or {key} = [] where {tenant.name} needs none'
                )
            if clash := next((pair for pair in combinations(reduce_by_containment(list(given)), 2) if overlaps(*pair)), None):
                raise ConfigInvalid(
                    f"{config.name}: tenant[{n}].{key}: {clash[0]} and {clash[1]} share subjects, which would come twice; write one that holds both, "
                    "or two that share none"
                )
    if "default" not in {tenant.name for tenant in tenants}:
        raise ConfigInvalid(
            f'{config.name}: tenant: default is not listed, and exists all the same; add [[tenant]] name = "default" with its subscribe and '
            "publish, [] where it needs none"
        )


def _described(user: User, seed_file: str) -> dict[str, object]:
    return {
        "user": user.name,
        "account": user.account,
        "nkey": user.nkey,
        "replaced": user.replaced,
        "seed_file": "" if user.replaced else seed_file,
        "inbox": user.inbox,
        "publish": list(user.rights.publish),
        "subscribe": list(user.rights.subscribe),
    }


def _print(users: Sequence[User], files: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("user", "seed", "inboxes begin with", "may publish", "may subscribe"):
        table.add_column(heading, no_wrap=True)
    for user in users:
        counts = [
            f"{len(subjects)} subject{'' if len(subjects) == 1 else 's'}" for subjects in (user.rights.publish, user.rights.subscribe)
        ]
        table.add_row(user.name, "the key before" if user.replaced else files[user.name], user.inbox, *counts)
    console().print(table)
