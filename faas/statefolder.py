"""The state folder of a node: held against a second node, and node.json in it, which says how to reach the node. Knows no part of the node.

It is there while the node runs and gone after a clean stop, so who finds it may rely on it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from faas.errors import ConfigInvalid, StateLocked


class NodeInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """STATE/node.json: how to reach a running node. `building` is told when it is ready, and not kept there."""

    node: str
    pid: int
    nats: str
    token: str
    http: str
    pool: str
    functions: tuple[str, ...]
    building: tuple[str, ...] = ()  # profiles and functions whose environment is not there yet


@contextmanager
def state_folder(state: Path, node: str) -> Iterator[None]:
    """Make the folder and hold it against a second node. Raises ConfigInvalid where it cannot be written, StateLocked where one runs."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigInvalid(f"the state folder {state} cannot be written: {error.strerror}; choose another with --state DIR") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateLocked(f"another node runs on the state folder {state}; stop it, or choose another with --state DIR") from None
        (state / "node.json").unlink(missing_ok=True)  # of a node that was killed
        (state / "node-name").write_text(node + "\n")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def node_file(path: Path, info: NodeInfo) -> Iterator[None]:
    """Write node.json whole, for its owner alone; removed at a clean stop."""
    unfinished = path.with_suffix(".new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(info)) + b"\n")
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
