"""The folder that `faas nats-config` keeps: a seed for each user, and which nodes and streams there are beside what faas.toml says.

Owns the keys, and when one gives way to the next: a rotation has two steps, and between them both keys hold, so that nobody is cut off. The public
half of the key before is all that is kept of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from faas.config import TenantConfig
from faas.errors import ConfigInvalid
from faas.security.permissions import PLATFORM, User, account_of, node_rights, operator_rights, rendered, tenant_rights
from faas.seeds import new_seed, public_key, read_seed, write_seed
from faas.subjects import node_inbox

CONFIG = "faas-users.conf"
OPERATOR, NODE, TENANT = "operator", "node", "tenant"


class Key(Struct, frozen=True, kw_only=True):
    """A user's key, its seed left out. `before` is the public key that it replaces, "" outside a rotation."""

    user: str
    nkey: str
    seed_file: str
    before: str = ""
    made: bool = False


class Keyring:
    """One folder. Raises ConfigInvalid where it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder, for its owner alone."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, file: str, more: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
        """What stands in a file, one name a line, and these, which are written there too: a second call knows what the first was told.

        Raises ConfigInvalid for one that is no name: they become subjects and files.
        """
        path = self.folder / file
        known = path.read_text("utf-8", "replace").split() if path.exists() else []
        found = list(dict.fromkeys([*known, *more]))
        for name in found:
            if not pattern.fullmatch(name):
                raise ConfigInvalid(f"{'--' + file[:-1] if name in more else path} {name[:80]!r}: use letters, digits, - and _")
        if found != known:
            path.write_text("".join(f"{name}\n" for name in found))
        return found

    def key(self, user: str) -> Key:
        """Its key, made where it has none."""
        path = self._seed_file(user)
        made = not path.exists()
        if made:
            write_seed(path, new_seed())
        before = self._before_file(user)
        old = before.read_text().strip() if before.exists() else ""
        return Key(user=user, nkey=public_key(read_seed(path), where=str(path)), seed_file=str(path), before=old, made=made)

    def rotate(self, user: str) -> None:
        """Give it another key, beside the one that it has. Raises ConfigInvalid where it is given another already, or has none."""
        path, before = self._seed_file(user), self._before_file(user)
        if not path.exists():
            raise ConfigInvalid(f"--rotate {user[:80]}: no such user; there are: {', '.join(self.users()) or 'none yet'}")
        if before.exists():
            raise ConfigInvalid(f"--rotate {user}: its key before still holds; first let it end with --retire {user}")
        before.write_text(f"{public_key(read_seed(path), where=str(path))}\n")
        write_seed(path, new_seed())

    def retire(self, user: str) -> None:
        """Let the key before the last one hold no longer. Raises ConfigInvalid where there is none."""
        before = self._before_file(user)
        if not before.exists():
            raise ConfigInvalid(f"--retire {user[:80]}: no key of it waits to end; --rotate {user[:80]} gives it another one first")
        before.unlink()

    def users(self) -> list[str]:
        """Who has a seed here."""
        return sorted(path.stem for path in self.folder.glob("*.nk")) if self.folder.is_dir() else []

    def write(self, users: Iterable[User]) -> Path:
        """The file to include, whole or as it was before."""
        path, beside = self.folder / CONFIG, self.folder / f".{CONFIG}.{os.getpid()}"
        beside.write_text(rendered(users))
        os.replace(beside, path)
        return path

    def _seed_file(self, user: str) -> Path:
        return self.folder / f"{user}.nk"

    def _before_file(self, user: str) -> Path:
        return self.folder / f"{user}.before"


def user_names(tenants: Iterable[TenantConfig], nodes: Iterable[str]) -> list[str]:
    """Everybody that a configuration needs a key for."""
    return [OPERATOR, *([f"{NODE}-{node}" for node in nodes] or [NODE]), *(f"{TENANT}-{tenant.name}" for tenant in tenants)]


def users_of(keys: Iterable[Key], tenants: Iterable[TenantConfig], streams: Iterable[str]) -> Iterator[User]:
    """Each key with what its holder may do; a key that is being replaced may do the same meanwhile."""
    held = [(key.user, nkey, nkey != key.nkey) for key in keys for nkey in (key.nkey, key.before) if nkey]
    listed = {f"{TENANT}-{tenant.name}": tenant for tenant in tenants}
    callers = [f"_INBOX_{nkey}" for user, nkey, _ in held if not _is_node(user)]
    for user, nkey, replaced in held:
        inbox, account = f"_INBOX_{nkey}", PLATFORM
        if _is_node(user):
            name = user.removeprefix(NODE).removeprefix("-")
            inbox, rights = node_inbox(name or "NAME"), node_rights(listed.values(), streams=streams, inboxes=callers, node=name)
        elif user == OPERATOR:
            rights = operator_rights(listed.values(), inbox=inbox)
        else:
            rights, account = tenant_rights(listed[user], inbox=inbox), account_of(listed[user].name)
        yield User(name=user, account=account, nkey=nkey, inbox=inbox, rights=rights, replaced=replaced)


def _is_node(user: str) -> bool:
    return user == NODE or user.startswith(f"{NODE}-")
