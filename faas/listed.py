"""A function as programs read of it: one JSON form for `faas functions --json`, `GET /functions` and the OpenAPI document. Pure."""

from __future__ import annotations

import json

import msgspec

from faas.model import FunctionReport


def as_json(report: FunctionReport, *, in_full: bool) -> dict[str, object]:
    """The document of one function; `in_full` with its keys, its environment and the JSON Schemas of what it takes and returns."""
    document = {"name": report.name, "tenant": report.tenant, "version": report.version, "runtime": report.runtime, "state": report.state}
    more = {"error": report.error} if report.error else {}
    short = {**document, **more, "triggers": msgspec.to_builtins(report.triggers), "not_enforced": list(report.not_enforced)}
    if not in_full or report.state != "ready":
        return short
    return {
        **short,
        "declaration": report.declaration,
        "environment": report.environment,
        "secrets": dict(report.secrets),
        "loaded": report.loaded,
        "input_schema": schema_of(report.input_schema),
        "output_schema": schema_of(report.output_schema),
    }


def schema_of(text: str) -> object:
    """As a JSON value; None where there is none."""
    return json.loads(text) if text else None
