"""Webhooks as functions declare them: which functions one has, how it is verified, and where two functions contradict each other. Pure.

One webhook is one subject, so what comes in goes to all its functions: they have to agree on how it is verified, or the weaker word would
count for all. Who has said something longest is right; by the registry alone, so that every node says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from faas.model import FunctionVersion
from faas.registry.registry import Key, Registration
from faas.triggers import Trigger, Verify


class Hook(Struct, frozen=True, kw_only=True):
    """A webhook of a tenant: `functions` are the names of those that its events set off, sorted; `payload_bytes` is the most that one of them takes."""

    tenant: str
    name: str
    verify: Verify
    secret: str
    functions: tuple[str, ...]
    payload_bytes: int


Hooks = Mapping[tuple[str, str], Hook]
"""By (tenant, webhook)."""


def hooks_of(served: Iterable[FunctionVersion]) -> Hooks:
    """The webhooks of these functions. Of two functions that contradict each other, which `contradictions` keeps apart, the first by name counts."""
    found: dict[tuple[str, str], Hook] = {}
    for function in sorted(served, key=lambda function: function.key):
        spec = function.spec
        for trigger in spec.triggers:
            if not trigger.webhook:
                continue
            at = (spec.tenant, trigger.webhook)
            before = found.get(at)
            found[at] = Hook(
                tenant=spec.tenant,
                name=trigger.webhook,
                verify=before.verify if before else trigger.verify or "none",
                secret=before.secret if before else trigger.secret,
                functions=(*(before.functions if before else ()), spec.name),
                payload_bytes=max(before.payload_bytes if before else 0, spec.limits.payload_bytes),
            )
    return found


def contradictions(registrations: Iterable[Registration]) -> dict[Key, str]:
    """One sentence for each function whose webhook another one has had verified otherwise for longer."""
    first: dict[tuple[str, str], tuple[str, str, Trigger]] = {}  # (tenant, webhook) -> (since when, function, what it says)
    said = [
        (_since(registration, trigger), registration.name, registration, trigger)
        for registration in registrations
        if not registration.withdrawn
        for trigger in _hooks(registration.current.triggers)
    ]
    found: dict[Key, str] = {}
    for since, name, registration, trigger in sorted(said, key=lambda one: one[:2]):
        _, other, theirs = first.setdefault((registration.tenant, trigger.webhook), (since, name, trigger))
        if (theirs.verify, theirs.secret) != (trigger.verify, trigger.secret):
            found[registration.key] = (
                f"the webhook {trigger.webhook} is the function {other}'s too, which has {_words(theirs)}; write the same, "
                "or name another webhook"
            )
    return found


def _since(registration: Registration, trigger: Trigger) -> str:
    """Since when, without a break, the function has had the webhook verified like this."""
    since = registration.current.at
    for revision in reversed(registration.history):
        if trigger not in revision.triggers:
            break
        since = revision.at
    return since


def _hooks(triggers: Iterable[Trigger]) -> Iterator[Trigger]:
    return (trigger for trigger in triggers if trigger.webhook)


def _words(trigger: Trigger) -> str:
    return f'verify = "{trigger.verify}"' + (f', secret = "{trigger.secret}"' if trigger.secret else "")
