"""Secrets by name and tenant, from a folder of files or from the node's environment: their values, and a version that changes with them.

Reads; never writes, prints or logs a value. Who gets a secret, and that it reaches nobody else, is the caller's.
A secret NAME of the tenant `default` is the file NAME in the folder, that of another tenant TENANT/NAME; in the environment they
are FAAS_SECRET_NAME and FAAS_SECRET_TENANT__NAME, in capitals and with _ for -. One line end after a value is not a part of it.
NAME.previous (FAAS_SECRET_NAME_PREVIOUS) is a value that still verifies while senders move to the new one; no function gets it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from faas.config import SECRET_VARIABLE, SecretsConfig, problem_with_secret
from faas.errors import ConfigInvalid, SecretMissing
from faas.model import NAME_PATTERN

DEFAULT_TENANT = "default"
PREVIOUS = ".previous"
SECRET_BYTES = 32 * 2**10
"""A value travels to the worker in one frame with others; a key, a certificate with its chain or a token is far below."""
VERSION_DIGITS = 12
SETTLED_NS = 100_000_000
"""A file whose times are younger is read again at the next use: two changes within one tick of the file system's clock look like one."""

log = structlog.get_logger()


@dataclass(slots=True, frozen=True)
class Secret:
    """A secret as it stands: `values` all that verify, the current one first. Its `repr` has none of them.

    `version` changes with the current value: a digest of it under a key of this node alone, so it tells nothing about the value
    and is another one on another node.
    """

    name: str
    version: str
    values: tuple[bytes, ...] = field(repr=False)

    @property
    def value(self) -> bytes:
        """The current value: what a function gets, and what signs."""
        return self.values[0]


@dataclass(slots=True, frozen=True)
class _Read:
    """A file as it was read. `mark` is what its status said; None: too young to be trusted."""

    mark: tuple[int, ...] | None
    value: bytes = field(repr=False)


class Secrets:
    """What `[secrets]` says, read at each use: a change shows at the next `get`, without a restart.

    Raises ConfigInvalid where the folder is none. With `provider = "environment"` the variables are taken out of `environ`,
    so that no process that the node starts inherits them.
    """

    def __init__(self, config: SecretsConfig, *, key: bytes = b"", environ: MutableMapping[str, str] | None = None) -> None:
        self._key = key or os.urandom(32)
        self._folder = Path(config.folder) if config.folder else None
        self._variables: dict[str, bytes] | None = None
        self._files: dict[Path, _Read] = {}
        self._last: dict[tuple[str, str], Secret] = {}
        self._warned: set[Path] = set()
        if config.provider == "environment":
            environ = os.environ if environ is None else environ
            taken = [name for name in environ if name.startswith(SECRET_VARIABLE)]
            self._variables = {name: environ.pop(name).encode("utf-8", "surrogateescape") for name in taken}
        elif self._folder is not None and not self._folder.is_dir():
            raise ConfigInvalid(f"secrets.folder: {self._folder} is no folder; make it with mkdir -m 700 {self._folder}")

    def get(self, name: str, tenant: str = DEFAULT_TENANT) -> Secret:
        """The secret as it stands now. Raises SecretMissing, which says where it was looked for and what to type."""
        last = self._last.get((name, tenant))
        if last is None:
            _check(name, tenant)
        if self._variables is not None:
            current, previous = self._of_the_environment(self._variables, name, tenant)
        elif self._folder is not None:
            current, previous = self._of_the_folder(self._folder, name, tenant)
        else:
            raise SecretMissing(name, 'this node has no secrets; write folder = "secrets" under [secrets] in faas.toml')
        values = (current, previous) if previous and previous != current else (current,)
        if last is None or last.values != values:
            digest = hmac.new(self._key, b"\0".join((tenant.encode(), name.encode(), current)), hashlib.sha256)
            last = self._last[name, tenant] = Secret(name, digest.hexdigest()[:VERSION_DIGITS], values)
        return last

    def _of_the_environment(self, variables: Mapping[str, bytes], name: str, tenant: str) -> tuple[bytes, bytes]:
        variable = variable_of(name, tenant)
        value = _plain(name, variables.get(variable, b""))
        if not value:
            what = "is empty" if variable in variables else "is not set"
            raise SecretMissing(name, f"{variable} {what} in the environment of the node; set it and start the node again")
        return value, _plain(name, variables.get(f"{variable}_PREVIOUS", b""))

    def _of_the_folder(self, folder: Path, name: str, tenant: str) -> tuple[bytes, bytes]:
        path = (folder if tenant == DEFAULT_TENANT else folder / tenant) / name
        try:
            value = self._read(path, name)
        except FileNotFoundError:
            make = "" if path.parent.is_dir() else f"mkdir -m 700 {path.parent} && "
            raise SecretMissing(name, f"there is no {path}; write it with {make}install -m 600 /dev/stdin {path}") from None
        except OSError as error:
            raise SecretMissing(name, f"{path} cannot be read: {error.strerror}") from error
        if not value:
            raise SecretMissing(name, f"{path} is empty; write it with install -m 600 /dev/stdin {path}")
        try:
            return value, self._read(path.with_name(name + PREVIOUS), name)
        except OSError:
            return value, b""

    def _read(self, path: Path, name: str) -> bytes:
        """A file's value, from memory where the file is the one that was read. Raises OSError, SecretMissing."""
        known = self._files.get(path)
        if known is not None and known.mark == _mark(path.stat()):
            return known.value
        self._files.pop(path, None)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SecretMissing(name, f"{path} is no file; one file holds one secret")
            data = os.read(descriptor, SECRET_BYTES + 3)
        finally:
            os.close(descriptor)
        self._warn(path, status)
        settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS
        self._files[path] = _Read(_mark(status) if settled else None, _plain(name, data))
        return self._files[path].value

    def _warn(self, path: Path, status: os.stat_result) -> None:
        if status.st_mode & 0o077 and path not in self._warned:
            self._warned.add(path)
            log.warning("secret.open_to_others", file=str(path), mode=f"{stat.S_IMODE(status.st_mode):04o}", type=f"chmod 600 {path}")


def _check(name: str, tenant: str) -> None:
    """Names that lead nowhere but to a secret. Raises SecretMissing."""
    if not re.fullmatch(NAME_PATTERN, tenant):
        raise SecretMissing(name, f"{tenant[:80]!r} is no name of a tenant")
    if problem := problem_with_secret(name):
        raise SecretMissing(name, problem)


def variable_of(name: str, tenant: str) -> str:
    """The environment variable of a secret. No two tenants share one: __ is in no name, and _ in no tenant's."""
    own = "" if tenant == DEFAULT_TENANT else f"{tenant}__"
    return f"{SECRET_VARIABLE}{own}{name}".upper().replace("-", "_")


def _plain(name: str, data: bytes) -> bytes:
    """A value without the line end that editors and echo leave. Raises SecretMissing where it is too long."""
    value = data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
    if len(value) > SECRET_BYTES:
        raise SecretMissing(name, f"has more than {SECRET_BYTES // 2**10} KiB; mount it as a folder instead")
    return value


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode)
