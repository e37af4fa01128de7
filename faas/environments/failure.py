"""What a failure of uv means for whoever waits for an environment: one sentence with what to type. Knows uv's messages; runs nothing."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

import msgspec

from faas.environments.installer import InstallerFailed
from faas.environments.interpreter import Interpreter
from faas.environments.lockfile import Pin, lock_path, source_path
from faas.errors import EnvironmentFailed
from faas.model import FunctionVersion, RuntimeProfile


class Whose(msgspec.Struct, frozen=True, kw_only=True):
    """Of what the failure is: `name` as `faas lock` takes it, the file name of its lock, and that of what the lock is made from."""

    name: str
    lock: str
    source: str


def of_profile(profile: RuntimeProfile) -> Whose:
    return Whose(name=profile.name, lock=lock_path(profile).name, source=source_path(profile).name)


def of_function(function: FunctionVersion) -> Whose:
    return Whose(name=function.spec.name, lock="its lock", source="its dependencies")


def failed(error: InstallerFailed, whose: Whose, interpreter: Interpreter, *, absent: Sequence[Pin] = ()) -> EnvironmentFailed:
    """uv's failure as that of an environment."""
    return EnvironmentFailed(whose.name, explain(error, whose, interpreter, absent=absent), interrupted=error.signal != 0)


def signal_name(number: int) -> str:
    """ "SIGKILL", or "signal 99" where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def explain(error: InstallerFailed, whose: Whose, interpreter: Interpreter, *, absent: Sequence[Pin] = ()) -> str:
    """uv's last lines, and before them one sentence: what is wrong and what to do. `absent` lies in none of the machine's folders of wheels."""
    lock, output = whose.lock, error.output
    here = f"Python {interpreter.version} on {interpreter.platform}"
    uncovered = re.search(r"(?:Because\s+)?([A-Za-z0-9][\w.-]*)(?:\{[^}]*\})?==(\S+)\s+has\s+no\s+wheels\s+with\s+a\s+matching", output)
    mismatch = re.search(r"Hash mismatch for `([^`]+)`", output)
    network = re.search(r"(?:Failed to fetch|error sending request|Could not connect|dns error|timed out)", output)
    unlocked = re.search(r"(?:no hashes were provided|have a hash|no hashes|--require-hashes)", output)
    source_only = re.search(r"(?:Wheels are required for|attempted to build|Distribution) `([A-Za-z0-9][\w.-]*)", output)
    if not re.search(r"--no-build|source distributions is disabled", output):
        source_only = None
    if error.signal:
        sentence = f"the build was killed by {signal_name(error.signal)}; where memory ran out, free some, and try again"
    elif uncovered is not None:
        sentence = (
            f"{lock} does not cover {here}: there is no wheel of {uncovered[1]} {uncovered[2]} for it; "
            f"run the node on a Python that the lock covers, or change {uncovered[1]} in {whose.source} and type: faas lock {whose.name}"
        )
    elif source_only is not None:
        sentence = (
            f"{source_only[1]} has no wheel for {here}, and nothing is built from source, which would run its code on the node; "
            f"ask for a version that has one in {whose.source}, or build one into a find-links folder of pip"
        )
    elif mismatch is not None:
        sentence = (
            f"the file of {mismatch[1]} that was found for {here} is none that {lock} allows; "
            f"where you trust its source, type: faas lock {whose.name}"
        )
    elif network is not None and absent:
        named = ", ".join(f"{pin.name} {pin.version}" for pin in absent)
        sentence = (
            f"no find-links folder of pip has {named} for {here}, and the index that has it did not answer; "
            "check the network, or run the node on a Python whose wheel lies in such a folder"
        )
    elif network is not None:
        sentence = "a package index did not answer; check the network (or pip's find-links folders) and try again"
    elif "No space left" in output:
        sentence = "the disk is full; free some space and try again"
    elif "No solution found" in output:
        sentence = f"{whose.source} cannot be satisfied: no set of versions fits together; uv's last lines say why"
    elif unlocked is not None:
        sentence = f"{lock} does not pin everything by hash; type: faas lock {whose.name}"
    else:
        sentence = f"uv could not install {lock} for {here}; its last lines say why"
    return f"{sentence}\n{output}"
