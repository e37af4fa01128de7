"""Makes `requirements.lock` from `requirements.in`: exact versions with the hashes of all their files, for every platform at once. Builds nothing.

Three things go in besides what a package index says: what `faas.worker` imports, `overrides.in` beside the requirements
(uv's overrides: a requirement of a requirement replaced, or left out by a marker that never holds), and hashes written behind
a requirement (`name==1+cpu --hash=sha256:…`), which are added to those found, for files that this machine cannot see.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from faas.environments.failure import failed, of_profile
from faas.environments.installer import InstallerFailed, find_sources, find_uv, plain_name
from faas.environments.interpreter import find_interpreter
from faas.environments.lockfile import (
    WORKER_REQUIREMENTS,
    Pin,
    lock_path,
    parse_lock,
    source_digest,
    source_path,
)
from faas.environments.resolution import LockReport, Resolution, header, replace
from faas.errors import EnvironmentFailed
from faas.model import RuntimeProfile

_HASH = re.compile(r"\s*--hash[= ](sha256:[0-9a-f]{64})")
_LOCAL_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)\s*==\s*([^\s;]+)")
_LOCKED_LINE = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)")


class Source(msgspec.Struct, frozen=True):
    """`requirements.in` as uv takes it, and the hashes that were written in it, by (name, version)."""

    text: str
    hashes: Mapping[tuple[str, str], tuple[str, ...]]
    local: tuple[Pin, ...]


def parse_source(text: str) -> Source:
    """Take the hashes out of requirements, and find the versions with a local part, which no package index has."""
    lines: list[str] = []
    hashes: dict[tuple[str, str], tuple[str, ...]] = {}
    local: list[Pin] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        requirement = _HASH.sub("", line)
        lines.append(requirement)
        pin = _LOCAL_PIN.match(requirement.strip())
        if pin is None:
            continue
        if written := tuple(_HASH.findall(line)):
            hashes[plain_name(pin[1]), pin[2]] = written
        if "+" in pin[2]:
            local.append(Pin(pin[1], pin[2]))
    return Source("\n".join(lines) + "\n", hashes, tuple(local))


async def lock(profile: RuntimeProfile) -> LockReport:
    """Resolve a profile's requirements afresh and replace its lock. Raises EnvironmentFailed; the old lock is then as it was."""
    try:
        source = parse_source(source_path(profile).read_text(encoding="utf-8"))
        digest = source_digest(profile)
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFailed(
            profile.name, f"{source_path(profile).name} cannot be read ({error}); write one requirement a line into it"
        ) from error
    uv = find_uv(profile.name)
    interpreter = await find_interpreter(profile.name, profile.python)
    sources = await find_sources(source.local, interpreter)
    try:
        with tempfile.TemporaryDirectory(prefix="faas-lock-") as scratch:
            resolution = Resolution(profile=profile, interpreter=interpreter, sources=sources, uv=uv, scratch=Path(scratch))
            body = _with_hashes(profile, await resolution.compile(source.text + "\n".join(WORKER_REQUIREMENTS) + "\n"), source)
            size_bytes, unsized = await resolution.measure(body)
    except InstallerFailed as error:
        raise failed(error, of_profile(profile), interpreter, absent=sources.absent) from error
    data = (
        header(
            profile.name, f"{source_path(profile).name}: edit that file", interpreter, digest=digest, size_bytes=size_bytes, unsized=unsized
        )
        + body
    ).encode()
    changed = await asyncio.to_thread(replace, lock_path(profile), data, name=profile.name)
    return LockReport(
        profile=profile.name,
        path=str(lock_path(profile)),
        packages=len({pin.name for pin in parse_lock(data).pins}),
        download_bytes=size_bytes,
        unsized=unsized,
        changed=changed,
    )


def _with_hashes(profile: RuntimeProfile, body: str, source: Source) -> str:
    """The lock's lines with the hashes that were written in the requirements added. Raises EnvironmentFailed for some of a version not in it."""
    missing = dict(source.hashes)
    blocks: list[str] = []
    for block in re.split(r"^(?=\S)", body, flags=re.MULTILINE):
        pin = _LOCKED_LINE.match(block)
        written = missing.pop((plain_name(pin[1]), pin[2]), ()) if pin is not None else ()
        if not written:
            blocks.append(block)
            continue
        first, *_ = block.splitlines()
        hashes = sorted({*written, *_HASH.findall(block)})
        blocks.append(" \\\n".join([first.rstrip(" \\"), *(f"    --hash={value}" for value in hashes)]) + "\n")
    if missing:
        named = ", ".join(f"{name}=={version}" for name, version in missing)
        raise EnvironmentFailed(
            profile.name, f"{source_path(profile).name} gives hashes for {named}, which is not what was resolved; correct its version"
        )
    return "".join(blocks)
