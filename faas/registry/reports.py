"""What is told of one function: from what the registry says of it, what a node serves of it, and what is wrong with it. Pure."""

from __future__ import annotations

import msgspec

from faas.model import FunctionReport, FunctionVersion
from faas.registry.registry import Registration


def report_of(registration: Registration, served: FunctionVersion | None, problem: str, *, not_enforced: tuple[str, ...]) -> FunctionReport:
    """A registered function as it stands on a node. `problem` is why its current version is not served there."""
    current = registration.current
    report = FunctionReport(
        name=registration.name,
        tenant=registration.tenant,
        version=served.version if served is not None else registration.version,
        runtime=served.spec.runtime if served is not None else current.runtime,
        state="ready" if served is not None else "invalid",
        triggers=served.spec.triggers if served is not None else current.triggers,
        not_enforced=not_enforced,
    )
    return with_error(report, problem) if problem else report


def unserved(function: FunctionVersion, *, not_enforced: tuple[str, ...]) -> FunctionReport:
    """One of a folder that nobody has registered."""
    return FunctionReport(
        name=function.spec.name,
        tenant=function.spec.tenant,
        version=function.version,
        runtime=function.spec.runtime,
        state="invalid",
        triggers=function.spec.triggers,
        not_enforced=not_enforced,
    )


def with_error(report: FunctionReport, error: str) -> FunctionReport:
    """What is wrong with a newer version; that another one is served all the same stands behind it."""
    if report.state == "ready":
        error = f"{error} (the version {report.version} is served instead)"
    return msgspec.structs.replace(report, error=error)
