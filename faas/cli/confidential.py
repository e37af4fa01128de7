"""Probes of what nobody else may read: the secrets that functions name, who may read their files, and what looks like a secret elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from faas.cli.findings import Finding, ok, problem, warning
from faas.model import FunctionVersion, RuntimeProfile
from faas.security.secrets import Secrets

LOOKS = ("secrets/*", "*.env", ".env*", "*.pem", "*.key")
ROTATION_S = 30 * 86_400
"""Since when a previous value is there: senders have moved on by then, or never will."""


def files(folder: Path) -> Iterator[Finding]:
    """Files that look like secrets beside the project, which others on this machine may read."""
    for file in dict.fromkeys(file for pattern in LOOKS for file in sorted(folder.glob(pattern))):
        if file.is_file() and file.stat().st_mode & 0o077:
            yield warning("secrets", f"{file.relative_to(folder)} may be read by others", f"chmod 600 {file.relative_to(folder)}")


def secrets(file: Path, functions: Path, profiles: Mapping[str, RuntimeProfile]) -> Iterator[Finding]:
    """What `[secrets]` names, and whether every secret of a function or a webhook is there."""
    from faas.config import keep_apart, load_file
    from faas.errors import ConfigInvalid, SpecInvalid
    from faas.registry.spec import read_functions

    try:
        parsed = load_file(file if file.exists() else None, os.environ)
    except ConfigInvalid:
        return  # said where the file is looked at
    config = parsed.secrets
    try:
        keep_apart(config, functions=functions, mounts=parsed.node.mounts)
        provider = Secrets(config, environ=dict(os.environ))  # a copy: what it takes out is somebody else's too
    except ConfigInvalid as error:
        yield problem("secrets", str(error), f"mkdir -m 700 {config.folder}" if "is no folder" in str(error) else f"edit {file}")
        return
    try:
        found = read_functions(functions, profiles, mounts=parsed.node.mounts).functions if functions.exists() else ()
    except SpecInvalid:
        found = ()
    if config.folder:
        yield from _folder(Path(config.folder))
    wanted = list(dict.fromkeys(_wanted(found)))
    said = [finding for name, tenant, whose in wanted if (finding := _one(provider, name, tenant, whose=whose, kind=config.provider))]
    yield from said
    if not said and (wanted or config.folder):
        yield ok("secrets", f"{', '.join(dict.fromkeys(name for name, _, _ in wanted)) or 'none'} named by functions")


def _wanted(functions: Iterable[FunctionVersion]) -> Iterator[tuple[str, str, str]]:
    """(name, tenant, whose) of every secret that a function or one of its webhooks names."""
    for function in functions:
        spec = function.spec
        for name in spec.secrets:
            yield name, spec.tenant, f"function {spec.name}"
        for trigger in spec.triggers:
            if trigger.secret:
                yield trigger.secret, spec.tenant, f"webhook {trigger.webhook} of {spec.name}"


def _one(provider: Secrets, name: str, tenant: str, *, whose: str, kind: str) -> Finding | None:
    from faas.errors import SecretMissing
    from faas.worker.redaction import SHORTEST_BYTES

    try:
        secret = provider.get(name, tenant)
    except SecretMissing as error:
        if kind == "environment":  # of this shell, which need not be the node's
            return warning("secrets", f"{whose}: {error.detail}; here it is not", "")
        return problem("secrets", f"{whose}: {error.detail}", error.detail.partition("; write it with ")[2])
    if len(secret.value) < SHORTEST_BYTES:
        why = f"{whose}: secret {name} has less than {SHORTEST_BYTES} bytes: it can be guessed, and is not hidden in logs"
        return warning("secrets", why, "")
    return None


def _folder(folder: Path) -> Iterator[Finding]:
    """Who may read it, and rotations that were never ended."""
    if folder.stat().st_mode & 0o077:
        yield warning("secrets", f"{folder} may be read by others", f"chmod 700 {folder}")
    here = Path().resolve()
    for file in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        if not file.is_file():
            continue
        status = file.stat()
        if status.st_mode & 0o077 and folder.resolve() != here / "secrets":  # those are looked at with all files of the project
            yield warning("secrets", f"{file} may be read by others", f"chmod 600 {file}")
        if file.suffix == ".previous" and time.time() - status.st_mtime > ROTATION_S:
            days = round((time.time() - status.st_mtime) / 86_400)
            yield warning("secrets", f"{file} verifies since {days} days beside its new value", f"rm {file}")
