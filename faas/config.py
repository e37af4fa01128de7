"""What people set: `faas.toml`, environment variables, and where things are. One frozen Struct for each part; read once.

Strict: an unknown key, a wrong type or a value out of range is an error that names it and says what would be right.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Literal, get_origin

from msgspec import Struct, field, structs

from faas.errors import ConfigInvalid
from faas.model import NAME_PATTERN, SECRET_PATTERN
from faas.strict import KeyInvalid, convert, parse_toml, type_at
from faas.subjects import problem_with
from faas.units import Duration, Size, format_size

FILE_LIMIT_BYTES = 2**20
PRICE_LIMIT = 1_000_000
SECRET_VARIABLE = "FAAS_SECRET_"
"""A secret of `provider = "environment"`, and no key of the file."""
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
NOT_YET: Mapping[str, tuple[str, ...]] = {
    "": ("policy",),
    "pool": ("base_image",),
    "tenant": ("policy",),
}
"""Sections and keys of the contract whose effect is not built; refused, so that nobody relies on them."""


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[node]`: `mounts` are absolute folders; what lies in one of them, functions of this node may mount."""

    mounts: tuple[str, ...] = ()


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


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[http]`: bounds of what one client may send, and hold open."""

    max_body_bytes: Size = field(name="max_body", default=Size(64 * 2**20))
    max_header_bytes: Size = field(name="max_header", default=Size(8 * 2**10))  # of the request line, and of each header
    keep_alive_s: Duration = field(name="keep_alive", default=Duration(75))  # an idle connection, and a head that does not come whole
    body_timeout_s: Duration = field(name="body_timeout", default=Duration(30))  # for a small body; a large one has more
    max_connections: int = 4096  # at once; beyond, the one goes that has been idle for longest


class Prices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[prices]`, US dollars an hour. Without a table everything costs 0 under the version "none"."""

    version: str = "none"
    cpu_hour: float = 0.0
    gib_hour: float = 0.0
    gpu_hour: Mapping[str, float] = {}
    bill_loading: bool = False


class SecretsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[secrets]`: a folder with one file for each, or variables FAAS_SECRET_NAME of the node. Without a folder there are none."""

    provider: Literal["folder", "environment"] = "folder"
    folder: str = ""  # where `load_file` gives it out: absolute, or relative to the working directory


Scope = Literal["invoke", "read", "admin"]
"""What a token may do for its tenant: run functions, look at what ran, and everything else too."""


class TokenConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tenant.token]]`, as `faas token new` prints it. `expires` is the first day, in UTC, on which it holds no longer."""

    sha256: str
    name: str = ""
    scopes: tuple[Scope, ...] = ("invoke", "read")
    expires: date | None = None


class TenantConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tenant]]`. `subscribe` bounds the subjects of its triggers, `publish` where its results and events may go; None: all but `$*` and `faas.*`."""

    name: str
    subscribe: tuple[str, ...] | None = None
    publish: tuple[str, ...] | None = None
    token: tuple[TokenConfig, ...] = ()


class FileConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `faas.toml` and its environment variables say."""

    node: NodeConfig = NodeConfig()
    bus: BusConfig = BusConfig()
    pool: PoolConfig = PoolConfig()
    prices: Prices = Prices()
    secrets: SecretsConfig = SecretsConfig()
    http: HttpConfig = HttpConfig()
    tenant: tuple[TenantConfig, ...] = ()


class Config(Struct, frozen=True, kw_only=True):
    """Everything that a node is started with. Only `app.py` sees it whole."""

    functions: Path
    runtimes: Path
    state: Path
    node: str
    mounts: tuple[str, ...] = ()  # absolute folders that functions may mount
    nats: str = ""  # URL of a server that is there already; empty: the embedded one
    nkey: Path | None = None  # seed file to show that server
    environments: Literal["build", "current"] = "build"  # "current": the node's own interpreter, and nothing is installed
    bus_address: tuple[str, int] = ("127.0.0.1", 4222)
    http_address: tuple[str, int] = ("127.0.0.1", 8080)
    bus: BusConfig = BusConfig()
    pool: PoolConfig = PoolConfig()
    prices: Prices = Prices()
    secrets: SecretsConfig = SecretsConfig()
    http: HttpConfig = HttpConfig()
    tenants: tuple[TenantConfig, ...] = ()


def keep_apart(secrets: SecretsConfig, *, functions: Path, mounts: Iterable[str]) -> None:
    """See that secrets lie nowhere where functions read: not in what is packed and deployed, nor in what they may mount. Raises ConfigInvalid."""
    if not secrets.folder:
        return
    folder = Path(secrets.folder).resolve()
    for other, what in (
        (functions, "the functions folder"),
        *((Path(mount), "what [node] mounts lets functions mount") for mount in mounts),
    ):
        if folder.is_relative_to(other.resolve()):
            raise ConfigInvalid(f"secrets.folder: {secrets.folder} lies in {other}, {what}; move it out of there")
    if functions.resolve().is_relative_to(folder):
        raise ConfigInvalid(f"secrets.folder: the functions folder {functions} lies in it; give secrets a folder of their own")


def load_file(path: Path | None, environ: Mapping[str, str]) -> FileConfig:
    """Read `faas.toml`, if there is a path, and let FAAS_SECTION__KEY win over it. Raises ConfigInvalid."""
    name = path.name if path is not None else "faas.toml"
    table = {} if path is None else _read(path)
    variables = _apply(table, environ)
    try:
        _refuse_not_yet(table)
        parsed = convert(table, FileConfig)
        _check_ranges(parsed)
        return structs.replace(parsed, secrets=_located(parsed.secrets, path, named="secrets" in table))
    except KeyInvalid as error:
        where = variables.get(error.key) or next((v for key, v in variables.items() if key.startswith(f"{error.key}.")), None)
        raise ConfigInvalid(f"{where}: {error.problem}" if where else f"{name}: {error}") from error


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise ConfigInvalid(f"{path.name}: has more than {format_size(FILE_LIMIT_BYTES)}")
    try:
        return parse_toml(data)
    except ValueError as error:
        raise ConfigInvalid(f"{path.name}: {error}") from error


def _apply(table: dict[str, object], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the environment's values into the table; returns which variable set which dotted key."""
    variables = {}
    for variable, text in sorted(environ.items()):
        section, _, key = variable.removeprefix("FAAS_").lower().partition("__")
        if not (variable.startswith("FAAS_") and section and key) or variable.startswith(SECRET_VARIABLE):
            continue
        part = table.setdefault(section, {})
        if isinstance(part, dict):  # else the file's own error says so
            wanted = type_at(FileConfig, f"{section}.{key}")
            part[key] = _scalar(text) if wanted in (int, float, bool) or get_origin(wanted) in (Mapping, tuple) else text
            variables[f"{section}.{key}"] = variable
    return variables


def _scalar(text: str) -> object:
    """A variable's text as TOML would have it: 8, 0.5, true, { H200 = 4.0 }, ["/data"]; what is none of these stays text."""
    try:
        return parse_toml(f"value = {text}".encode("utf-8", "surrogateescape"))["value"]
    except ValueError:
        return text


def _refuse_not_yet(table: Mapping[str, object]) -> None:
    for section, keys in NOT_YET.items():
        inside = table if not section else table.get(section, {})
        for index, part in enumerate(inside if isinstance(inside, list) else [inside]):
            where = f"{section}[{index}]" if isinstance(inside, list) else section
            for key in keys:
                if isinstance(part, Mapping) and key in part:
                    raise KeyInvalid(f"{where}.{key}".lstrip("."), "not supported yet; remove it")


def _check_ranges(parsed: FileConfig) -> None:
    bus, pool, prices, http = parsed.bus, parsed.pool, parsed.prices, parsed.http
    rules: list[tuple[bool, str, str]] = [
        (
            all(_is_folder(folder) for folder in parsed.node.mounts),
            "node.mounts",
            'must be absolute folders without . and .., like ["/data"]',
        ),
        (1 <= bus.ack_wait_s <= 600, "bus.ack_wait", "must be between 1s and 10m"),
        (bus.replicas in (1, 3, 5), "bus.replicas", "must be 1, 3 or 5"),
        (64 * 2**10 <= bus.max_payload_bytes <= 64 * 2**20, "bus.max_payload", "must be between 64KiB and 64MiB"),
        (60 <= bus.outcome_retention_s <= 30 * 86_400, "bus.outcome_retention", "must be between 1m and 30d"),
        (bus.max_bytes >= 2**20, "bus.max_bytes", "must be at least 1MiB"),
        (0 <= pool.slots <= 4096, "pool.slots", "must be between 1 and 4096, or 0 for 4 x cores"),
        (2**10 <= http.max_body_bytes <= 2**40, "http.max_body", "must be between 1KiB and 1TiB"),
        (2**10 <= http.max_header_bytes <= 64 * 2**10, "http.max_header", "must be between 1KiB and 64KiB"),
        (1 <= http.keep_alive_s <= 3600, "http.keep_alive", "must be between 1s and 1h"),
        (1 <= http.max_connections <= 65_536, "http.max_connections", "must be between 1 and 65536"),
        (1 <= http.body_timeout_s <= 3600, "http.body_timeout", "must be between 1s and 1h"),
        (bool(prices.version), "prices.version", 'must not be empty; name the table, like "2026-11"'),
    ]
    amounts = {"cpu_hour": prices.cpu_hour, "gib_hour": prices.gib_hour, **{f"gpu_hour.{k}": v for k, v in prices.gpu_hour.items()}}
    rules += [
        (0 <= v <= PRICE_LIMIT, f"prices.{k}", f"must be between 0 and {PRICE_LIMIT:,} US dollars an hour") for k, v in amounts.items()
    ]
    for holds, key, problem in (*rules, *_tenant_rules(parsed.tenant)):
        if not holds:
            raise KeyInvalid(key, problem)


def _tenant_rules(tenants: Sequence[TenantConfig]) -> Iterator[tuple[bool, str, str]]:
    names: set[str] = set()
    digests: dict[str, str] = {}
    for n, tenant in enumerate(tenants):
        where = f"tenant[{n}]"
        named = re.fullmatch(NAME_PATTERN, tenant.name) is not None
        yield named, f"{where}.name", "must begin with a-z, then a-z, 0-9 and -, at most 63"
        yield tenant.name not in names, f"{where}.name", f"{tenant.name} is there twice; one [[tenant]] for each"
        names.add(tenant.name)
        for key, patterns in (("subscribe", tenant.subscribe), ("publish", tenant.publish)):
            for pattern in patterns or ():
                problem = problem_with(pattern)
                yield problem is None, f"{where}.{key}", f"{pattern[:80]!r}: {problem}"
        for m, token in enumerate(tenant.token):
            digest = f"{where}.token[{m}].sha256"
            yield re.fullmatch(r"[0-9a-f]{64}", token.sha256) is not None, digest, f"must be what `faas token new {tenant.name}` prints"
            known = digests.setdefault(token.sha256, tenant.name)
            yield known == tenant.name, digest, f"is the token of {known}; make another with `faas token new {tenant.name}`"
            yield bool(token.scopes), f"{where}.token[{m}].scopes", "must name at least one of invoke, read, admin"
            yield not isinstance(token.expires, datetime), f"{where}.token[{m}].expires", "must be a date, like 2027-01-31"


def _located(given: SecretsConfig, path: Path | None, *, named: bool) -> SecretsConfig:
    """A relative folder is one beside the file that names it. Raises KeyInvalid."""
    if given.provider == "environment" and given.folder:
        raise KeyInvalid("secrets.folder", 'has no effect with provider = "environment"; leave one of the two out')
    if given.provider == "folder" and named and not given.folder:
        raise KeyInvalid("secrets.folder", 'is missing; name a folder with one file for each secret, like folder = "secrets"')
    if "\0" in given.folder:
        raise KeyInvalid("secrets.folder", "has a zero character, which no folder can have")
    return structs.replace(given, folder=str((path.parent if path else Path()) / given.folder)) if given.folder else given


def problem_with_secret(name: str) -> str:
    """Why a text is no name of a secret, and what is one; "" where it is."""
    if not re.fullmatch(SECRET_PATTERN, name) or len(name) > 63:
        return f"{name[:80]!r} is no name of a secret; letters and digits, with single _ or - between them, at most 63"
    if re.fullmatch(r".*[_-]previous", name, re.IGNORECASE):
        return f"{name!r}: a name that ends in previous is kept for rotation; choose another"
    return ""


def _is_folder(path: str) -> bool:
    return path.startswith("/") and path.isprintable() and not {"", ".", ".."} & set(path[1:].split("/"))


# ---------------------------------------------------------------- where things are


def parse_address(text: str, option: str) -> tuple[str, int]:
    """ "127.0.0.1:4222" -> (host, port); port 0 lets the system choose. Raises ConfigInvalid."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if (
        not colon
        or not re.fullmatch(r"[0-9A-Fa-f:.%a-z]+" if bracketed else r"[A-Za-z0-9._-]+", host)
        or not re.fullmatch(r"[0-9]{1,5}", port)
    ):
        raise ConfigInvalid(f"{option} {text!r}: write HOST:PORT, like 127.0.0.1:0 or [::1]:0")
    if int(port) > 65_535:
        raise ConfigInvalid(f"{option} {text!r}: a port is at most 65535")
    return host, int(port)


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
