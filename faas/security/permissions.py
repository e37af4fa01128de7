"""What nodes, tenants and operators may do on the bus, subject by subject, and how nats-server is told. Pure: knows no file and no key.

A list here is what its users really do and nothing beyond: a node that does something new needs its line, which the suite finds, since it runs
under these lists. No tenant gets `$JS.API.>`, no one `_INBOX.>` to listen on.

Permissions bound what a user publishes, and not where it asks for the answer: JetStream answers with the server's own rights, into the registry or
another's outcomes where a reply subject says so. So each tenant has an account of its own, into which its rights are imported, and there its
answers stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from faas import subjects
from faas.config import TenantConfig
from faas.subjects import BUNDLES, CANCELLED, DEAD, EVENTS, LOGS, NODES, OUTCOMES, PAYLOADS, REGISTRY, SCHEDULES, USAGE, node_inbox

BUCKETS = (CANCELLED, REGISTRY, NODES)
OBJECTS = (PAYLOADS, BUNDLES)
STREAMS = (EVENTS, SCHEDULES, OUTCOMES, USAGE, DEAD, LOGS, *(f"KV_{name}" for name in BUCKETS), *(f"OBJ_{name}" for name in OBJECTS))
"""Every stream of the runtime."""
CONSUMED = (EVENTS, SCHEDULES, OUTCOMES, USAGE, DEAD)
"""Those that a node makes consumers on: of functions, or short-lived ones to read forward."""
PURGED = (EVENTS, *(f"OBJ_{name}" for name in OBJECTS))

WRITTEN = (
    "attempt",
    "audit",
    "chunk",
    "dead",
    "hook",
    "invoke",
    "log",
    "outcome",
    "retry",
    "schedule",
    "submit",
    "usage",
    "cancel",
    "node",
)
"""Of `faas.<kind>.>`: where a node publishes. `faas.due` is not among them: only schedules of its own fire there."""
ANSWERED = f"{subjects.ABROAD}>"
"""Where a node answers whoever asks from another account; the server makes these subjects up, and lets no client name one."""
PLATFORM = "FAAS"
"""The account of nodes and operators, where the streams are. That of a tenant is this, - and its name."""
HEARD = ("attempt", "cancel", "chunk", "dead", "invoke", "log", "outcome")
"""Of these what it listens to: requests, and what its HTTP door tells its callers."""
ANSWER_TIME = "24h"
"""For a call of a function to be answered in another account; the server's own two minutes, which hold for everything else, are less than it may take."""


class Rights(Struct, frozen=True, kw_only=True):
    """The subjects that a user may publish to, and those that it may subscribe to; all others are refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


class User(Struct, frozen=True, kw_only=True):
    """One user as the server knows it: by a public key, in an account. `replaced` is a key that holds until its rotation ends."""

    name: str
    account: str
    nkey: str
    inbox: str
    rights: Rights
    replaced: bool = False


def node_rights(tenants: Iterable[TenantConfig], *, streams: Iterable[str] = (), inboxes: Iterable[str] = (), node: str = "") -> Rights:
    """Of the node of that name, "" for all nodes. `streams` are the users' own that functions read, `inboxes` those of whoever asks nodes."""
    listed, streams = list(tenants), list(streams)
    name = node or "*"
    publish = [f"faas.{kind}.>" for kind in WRITTEN]
    publish += [subjects.JANITOR, "$SYS.REQ.USER.INFO", "$SRV.PING.faas", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"]
    publish += [right for stream in STREAMS for right in _declares(stream)]
    publish += [right for stream in (*CONSUMED, *streams) for right in _consumes(stream)]
    publish += [f"$JS.API.STREAM.INFO.{stream}" for stream in streams]
    publish += [right for stream in (*STREAMS, *streams) for right in _reads(stream)]
    publish += [f"$JS.API.STREAM.PURGE.{stream}" for stream in PURGED]
    publish += [f"$JS.API.STREAM.MSG.DELETE.{SCHEDULES}"]
    publish += [f"$KV.{bucket}.>" for bucket in BUCKETS] + [f"$O.{bucket}.>" for bucket in OBJECTS]
    publish += ["_INBOX.>", ANSWERED, node_inbox(">"), *(f"{inbox}.>" for inbox in inboxes)]
    publish += [subject for tenant in listed for subject in tenant.publish or ()]
    subscribe = [f"faas.{kind}.>" for kind in HEARD]
    subscribe += [subjects.JANITOR, "faas.node.any.>", f"faas.node.{name}.>", "$JS.EVENT.ADVISORY.STREAM.DELETED.>"]
    for verb in ("PING", "INFO", "STATS"):
        subscribe += [f"$SRV.{verb}", f"$SRV.{verb}.{subjects.SERVICE}", f"$SRV.{verb}.{subjects.SERVICE}.{name}"]
    subscribe += [f"$KV.{bucket}.>" for bucket in BUCKETS]
    subscribe += [f"{node_inbox(node)}.>" if node else node_inbox(">")]
    subscribe += [subject for tenant in listed for subject in tenant.subscribe or ()]
    return _rights(publish, subscribe)


def tenant_rights(tenant: TenantConfig, *, inbox: str) -> Rights:
    """Of the programs of a tenant: its functions by name, its own lists, and what is told of it.

    Of what is stored its own outcomes alone, one by one. In an account of its own: the server sends what it reads to any reply subject.
    """
    name = tenant.name
    publish = [f"faas.{kind}.{name}.>" for kind in ("submit", "invoke", "cancel")]
    publish += [f"$JS.API.DIRECT.GET.{OUTCOMES}.faas.outcome.{name}.>", *(tenant.publish or ())]
    subscribe = [f"faas.{kind}.{name}.>" for kind in ("outcome", "log", "usage", "dead", "chunk")]
    subscribe += [f"{inbox}.>", *(tenant.subscribe or ())]
    return _rights(publish, subscribe)


def operator_rights(tenants: Iterable[TenantConfig], *, inbox: str) -> Rights:
    """Of whoever runs the bus, and deploys: every verb of the command line, for every tenant; the whole API of JetStream."""
    lists = [subject for tenant in tenants for subject in (*(tenant.publish or ()), *(tenant.subscribe or ()))]
    publish = [f"faas.{kind}.>" for kind in ("submit", "invoke", "cancel", "node", "due")]
    publish += ["$SRV.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$SYS.REQ.USER.INFO"]
    publish += [f"$KV.{bucket}.>" for bucket in BUCKETS] + [f"$O.{bucket}.>" for bucket in OBJECTS]
    subscribe = [f"faas.{kind}.>" for kind in ("outcome", "log", "usage", "dead", "chunk", "audit")]
    subscribe += [f"$KV.{bucket}.>" for bucket in BUCKETS] + [f"{inbox}.>"]
    return _rights([*publish, *lists], [*subscribe, *lists])


def _declares(stream: str) -> list[str]:
    return [f"$JS.API.STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "UPDATE")]


def _reads(stream: str) -> list[str]:
    return [f"$JS.API.STREAM.MSG.GET.{stream}", f"$JS.API.DIRECT.GET.{stream}", f"$JS.API.DIRECT.GET.{stream}.>"]


def _consumes(stream: str) -> list[str]:
    api = "$JS.API.CONSUMER"
    made = [f"{api}.CREATE.{stream}", f"{api}.CREATE.{stream}.>", f"{api}.LIST.{stream}"]
    return [
        *made,
        *(f"{api}.{verb}.{stream}.*" for verb in ("INFO", "DELETE", "MSG.NEXT")),
        f"$JS.ACK.{stream}.>",
        f"$JS.ACK.*.*.{stream}.>",
    ]


def _rights(publish: list[str], subscribe: list[str]) -> Rights:
    return Rights(
        publish=tuple(sorted(subjects.reduce_by_containment(publish))), subscribe=tuple(sorted(subjects.reduce_by_containment(subscribe)))
    )


def account_of(tenant: str) -> str:
    """The account of a tenant's users."""
    return f"{PLATFORM}-{tenant}"


def rendered(users: Iterable[User]) -> str:
    """The accounts and their users as a file that a configuration of nats-server includes at its top level."""
    accounts: dict[str, list[User]] = {PLATFORM: []}
    for user in users:
        accounts.setdefault(user.account, []).append(user)
    lines = [
        "# Written by `faas nats-config`, which writes it anew: change faas.toml, and type that again.",
        "# In the configuration of nats-server: include ./faas-users.conf",
        "accounts {",
    ]
    for account, members in accounts.items():
        lines += [f"  {json.dumps(account)}: {{", *(["    jetstream: enabled"] if account == PLATFORM else [])]
        lines += ["    users: [", *(line for user in members for line in _user(user)), "    ]"]
        lines += _exports(accounts) if account == PLATFORM else _imports(members)
        lines += ["  }"]
    return "\n".join([*lines, "}", ""])


def _user(user: User) -> Iterator[str]:
    yield f"      # {user.name}{', its key before' if user.replaced else ''}; its inboxes begin with {user.inbox}"
    yield f"      {{ nkey: {user.nkey}, permissions: {{"
    for verb, allowed in (("publish", user.rights.publish), ("subscribe", user.rights.subscribe)):
        yield from (f"        {verb}: {{ allow: [", *(f"          {json.dumps(subject)}" for subject in allowed), "        ] }")
    yield "      } }"


def _shared(members: Iterable[User]) -> Iterator[tuple[str, str]]:
    """(kind, subject) of what an account has of the platform's: as services what its users publish, as streams what they hear."""
    rights = [user.rights for user in members]
    yield from (("service", subject) for subject in subjects.reduce_by_containment([one for had in rights for one in had.publish]))
    yield from (("stream", subject) for subject in subjects.reduce_by_containment([one for had in rights for one in had.subscribe]))


def _exports(accounts: Mapping[str, list[User]]) -> Iterator[str]:
    to: dict[tuple[str, str], list[str]] = {}
    for account, members in accounts.items():
        for shared in _shared(members) if account != PLATFORM else ():
            to.setdefault(shared, []).append(account)
    yield "    exports: ["
    for (kind, subject), importers in to.items():
        time = f", response_threshold: {json.dumps(ANSWER_TIME)}" if subject.startswith("faas.invoke.") else ""
        yield f"      {{ {kind}: {json.dumps(subject)}, accounts: {json.dumps(importers)}{time} }}"
    yield "    ]"


def _imports(members: Iterable[User]) -> Iterator[str]:
    yield "    imports: ["
    for kind, subject in _shared(members):
        yield f"      {{ {kind}: {{ account: {PLATFORM}, subject: {json.dumps(subject)} }} }}"
    yield "    ]"
