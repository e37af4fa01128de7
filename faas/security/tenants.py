"""Which tenants a configuration lists, and the subjects that bound each: where its triggers may listen, and where anything of it may publish.

Pure: knows no bus and no file. What it refuses it says in words, for whoever asked; "" is a yes. The same question is asked where a function is
registered, where it is served, and while it runs: nodes may have been given different lists, and then the narrower one holds.
"""

from __future__ import annotations

from collections.abc import Iterable

from faas.config import TenantConfig
from faas.model import FunctionSpec, FunctionVersion
from faas.subjects import contains, is_inbox, problem_with_reply
from faas.triggers import Trigger

DEFAULT = "default"
"""The tenant of whatever names none; it exists where no list names it, too."""


class Tenants:
    """The lists of a configuration; without any every tenant exists, and may use whatever is not the runtime's own."""

    def __init__(self, listed: Iterable[TenantConfig] = ()) -> None:
        self._listed = {tenant.name: tenant for tenant in listed}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self._listed, DEFAULT}))

    def unknown(self, tenant: str) -> str:
        """Why there is no such tenant."""
        if not self._listed or tenant in self._listed or tenant == DEFAULT:
            return ""
        return f"no tenant {tenant[:80]}; [[tenant]] of faas.toml lists {', '.join(self.names)}"

    def not_subscribed(self, tenant: str, subject: str) -> str:
        """Why a trigger may not have this subject, wildcards and all."""
        listed = self._listed.get(tenant)
        return "" if listed is None else _outside(listed.subscribe, subject, f"the tenant {tenant} may subscribe to", key="subscribe")

    def not_published(self, tenant: str, subject: str) -> str:
        """Why nothing of this tenant may be published here."""
        listed = self._listed.get(tenant)
        return "" if listed is None else _outside(listed.publish, subject, f"the tenant {tenant} may publish to", key="publish")

    def not_answered(self, tenant: str, subject: str) -> str:
        """Why no answer for this tenant may go where whoever sent an event says: an inbox is its listener's alone, and always may be named."""
        return problem_with_reply(subject) or ("" if is_inbox(subject) else self.not_published(tenant, subject))

    def problem_of(self, spec: FunctionSpec) -> tuple[str, str] | None:
        """(key, what is wrong with it) of the first key of a declaration that reaches beyond its tenant."""
        if unknown := self.unknown(spec.tenant):
            return "tenant", unknown
        for index, trigger in enumerate(spec.triggers):
            if (problem := self._problem_with(spec.tenant, trigger)) is not None:
                return f"trigger[{index}].subject", problem
        if spec.output.publish and (refused := self.not_published(spec.tenant, spec.output.publish)):
            return "output.publish", f"{spec.output.publish}: {refused}"
        return None

    def refusal(self, function: FunctionVersion) -> str:
        """The same as one sentence that names the file: whoever deployed it may have been given other lists."""
        beyond = self.problem_of(function.spec)
        return f"{function.file}: {beyond[0]}: {beyond[1]}" if beyond is not None else ""

    def _problem_with(self, tenant: str, trigger: Trigger) -> str | None:
        refused = self.not_subscribed(tenant, trigger.subject) if trigger.subject else ""
        return f"{trigger.subject}: {refused}" if refused else None


def _outside(allowed: tuple[str, ...] | None, subject: str, may: str, *, key: str) -> str:
    if allowed is None or any(contains(wide, subject) for wide in allowed):
        return ""
    return f"{may} {', '.join(allowed) or 'nothing'} alone, says {key} of its [[tenant]]"
