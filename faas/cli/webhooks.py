"""Probes of webhooks: who may send to them, how well their secrets keep others out, and functions that contradict each other. Sends nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from faas.cli.findings import Finding, ok, problem, warning
from faas.errors import ConfigInvalid, SecretMissing, SpecInvalid
from faas.model import FunctionVersion, RuntimeProfile
from faas.registry.hooks import Hook, Hooks, hooks_of
from faas.security.secrets import Secrets
from faas.security.signatures import problem_with


def webhooks(file: Path, functions: Path, profiles: Mapping[str, RuntimeProfile]) -> Iterator[Finding]:
    """Every webhook of the functions in a folder. That its secret is missing is said where secrets are looked at."""
    from faas.config import load_file
    from faas.registry.spec import read_functions

    try:
        parsed = load_file(file if file.exists() else None, os.environ)
        found = read_functions(functions, profiles, mounts=parsed.node.mounts).functions if functions.exists() else []
        secrets = Secrets(parsed.secrets, environ=dict(os.environ))
    except (ConfigInvalid, SpecInvalid):
        return  # said where they are looked at
    hooks = hooks_of(found)
    said = [*_contradictions(found, hooks), *(finding for hook in hooks.values() if (finding := _one(hook, secrets)))]
    yield from said
    if hooks and not said:
        yield ok("webhooks", ", ".join(f"{_path(hook)} ({hook.verify})" for hook in hooks.values()))


def _one(hook: Hook, secrets: Secrets) -> Finding | None:
    if hook.verify == "none":
        return warning("webhooks", f'{_path(hook)} has verify = "none": whoever reaches the node may send to it', "")
    try:
        weak = next(filter(None, (problem_with(hook.verify, value) for value in secrets.get(hook.secret, hook.tenant).values)), "")
    except SecretMissing:
        return None
    return warning("webhooks", f"{_path(hook)}: the secret {hook.secret} {weak}", "") if weak else None


def _contradictions(functions: list[FunctionVersion], hooks: Hooks) -> Iterator[Finding]:
    """Functions of one webhook that have it verified otherwise: which of them is served depends on which was there first."""
    for function in functions:
        for trigger in function.spec.triggers:
            hook = hooks.get((function.spec.tenant, trigger.webhook)) if trigger.webhook else None
            if hook is not None and (hook.verify, hook.secret) != (trigger.verify or "none", trigger.secret):
                why = f"{function.file}: {trigger.webhook} is a webhook of {hook.functions[0]} too, which has it verified otherwise"
                yield problem("webhooks", why, f"edit {function.file}")


def _path(hook: Hook) -> str:
    return f"/hooks/{hook.tenant}/{hook.name}"
