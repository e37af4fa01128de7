"""What people set: `faas.toml`, environment variables, and where things are. One frozen Struct for each part; read once.

Strict: an unknown key, a wrong type or a value out of range is an error that names it and says what would be right.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from faas.errors import ConfigInvalid
from faas.units import Duration, Size, decode_unit

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
NOT_YET: Mapping[str, tuple[str, ...]] = {
    "": ("node", "http", "policy", "tenant", "secrets"),
    "pool": ("base_image",),
}
"""Sections and keys of the contract whose effect is not built; refused, so that nobody relies on them."""


class BusConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[bus]`: durability and bounds of what the bus holds."""

    sync: Literal["always", "default"] = "always"
    ack_wait_s: Duration = field(name="ack_wait", default=Duration(20))
    replicas: int = 1
    max_payload_bytes: Size = field(name="max_payload", default=Size(2**20))
    outcome_retention_s: Duration = field(name="outcome_retention", default=Duration(86_400))
    max_bytes: Size = Size(4 * 2**30)


class PoolConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[pool]`: `slots` is how many attempts run at once on this node; 0 means 4 x cores."""

    slots: int = 0

    @property
    def slots_or_default(self) -> int:
        return self.slots or 4 * (os.cpu_count() or 1)


class Prices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[prices]`, US dollars an hour. Without a table everything costs 0 under the version "none"."""

    version: str = "none"
    cpu_hour: float = 0.0
    gib_hour: float = 0.0
    gpu_hour: Mapping[str, float] = {}
    bill_loading: bool = False


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bus: BusConfig = BusConfig()
    pool: PoolConfig = PoolConfig()
    prices: Prices = Prices()


class Config(Struct, frozen=True, kw_only=True):
    """Everything that a node is started with. Only `app.py` sees it whole."""

    functions: Path
    runtimes: Path
    state: Path
    node: str
    nats: str = ""  # URL of a server that is there already; empty: the embedded one
    bus_address: tuple[str, int] = ("127.0.0.1", 4222)
    http_address: tuple[str, int] = ("127.0.0.1", 8080)
    bus: BusConfig = BusConfig()
    pool: PoolConfig = PoolConfig()
    prices: Prices = Prices()


def load_file(path: Path | None, environ: Mapping[str, str]) -> tuple[BusConfig, PoolConfig, Prices]:
    """Read `faas.toml`, if there is a path, and let FAAS_SECTION__KEY win over it. Raises ConfigInvalid."""
    name = path.name if path is not None else "faas.toml"
    table = {} if path is None else _read_toml(path)
    for variable, value in sorted(environ.items()):
        section, _, key = variable.removeprefix("FAAS_").partition("__")
        if variable.startswith("FAAS_") and key:
            table.setdefault(section.lower(), {})[key.lower()] = _scalar(value)
    _refuse_not_yet(name, table)
    try:
        parsed = msgspec.convert(table, _File, dec_hook=decode_unit)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{name}: {explain(error, _File)}") from error
    _check_ranges(name, parsed)
    return parsed.bus, parsed.pool, parsed.prices


def _read_toml(path: Path) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path.name}: no TOML: {error}") from error


def _scalar(text: str) -> object:
    """A variable's text as TOML would have it: 8, 0.5, true; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_not_yet(name: str, table: Mapping[str, object]) -> None:
    for section, keys in NOT_YET.items():
        inside = table if not section else table.get(section, {})
        for key in keys:
            if isinstance(inside, Mapping) and key in inside:
                raise ConfigInvalid(f"{name}: {f'{section}.' if section else ''}{key}: not supported yet; remove it")


def _check_ranges(name: str, parsed: _File) -> None:
    bus, pool, prices = parsed.bus, parsed.pool, parsed.prices
    rules: tuple[tuple[bool, str], ...] = (
        (1 <= bus.ack_wait_s <= 600, "bus.ack_wait: must be between 1s and 10m"),
        (bus.replicas in (1, 3, 5), "bus.replicas: must be 1, 3 or 5"),
        (64 * 2**10 <= bus.max_payload_bytes <= 64 * 2**20, "bus.max_payload: must be between 64KiB and 64MiB"),
        (60 <= bus.outcome_retention_s <= 30 * 86_400, "bus.outcome_retention: must be between 1m and 30d"),
        (bus.max_bytes >= 2**20, "bus.max_bytes: must be at least 1MiB"),
        (0 <= pool.slots <= 4096, "pool.slots: must be between 1 and 4096, or 0 for 4 x cores"),
        (min([prices.cpu_hour, prices.gib_hour, *prices.gpu_hour.values()]) >= 0, "prices: a price must not be negative"),
        (bool(prices.version), "prices.version: must not be empty"),
    )
    for holds, problem in rules:
        if not holds:
            raise ConfigInvalid(f"{name}: {problem}")


def explain(error: msgspec.ValidationError, root: type) -> str:
    """msgspec's words as `key.path: what is wrong`, with the nearest known key for an unknown one."""
    text, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".").replace("[...]", "")
    unknown = re.search(r"unknown field `(.+?)`", text)
    if unknown is None:
        return f"{path}: {text[:1].lower()}{text[1:]}" if path else text
    key = unknown[1]
    known = _keys_at(root, path)
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    return f"{f'{path}.' if path else ''}{key}: unknown key; {hint}"


def _keys_at(root: type, path: str) -> list[str]:
    """The keys that a Struct takes at a dotted path of encoded names."""
    current = root
    for part in filter(None, re.sub(r"\[\d*\]", "", path).split(".")):
        found = next((f.type for f in msgspec.structs.fields(current) if f.encode_name == part), None)
        while found is not None and not (isinstance(found, type) and issubclass(found, Struct)):
            arguments = getattr(found, "__args__", ())
            found = next((a for a in arguments if isinstance(a, type) and issubclass(a, Struct)), None)
        if found is None:
            return []
        current = found
    return [f.encode_name for f in msgspec.structs.fields(current)]


def parse_address(text: str, option: str) -> tuple[str, int]:
    """ "127.0.0.1:4222" -> (host, port); port 0 lets the system choose. Raises ConfigInvalid."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigInvalid(f"{option} {text!r}: write HOST:PORT, like 127.0.0.1:0")
    return host.strip("[]"), int(port)


def node_name(state: Path, given: str | None) -> str:
    """The node's name: as given, else the one kept in the state folder, else `<host>-<6 random>`, which is kept there. Raises ConfigInvalid."""
    if given is not None:
        if not NODE_NAME.fullmatch(given):
            raise ConfigInvalid(f"--node {given!r}: use letters, digits, - and _, at most 63")
        return given
    file = state / "node-name"
    try:
        kept = file.read_text().strip()
        if NODE_NAME.fullmatch(kept):
            return kept
    except OSError:
        pass  # the first start, or a folder that cannot be read: whoever needs to write there says so
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40].strip("-") or "node"
    return f"{host}-{secrets.token_hex(3)}"
