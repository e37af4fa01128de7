"""The OpenAPI document (3.1) of a node's doors, generated from what is there: every door, every function with the types that its worker reported. Pure.

What this build does not support is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from faas.gateway.asking import StateDocument
from faas.gateway.problems import MEDIA_TYPE, ProblemDocument
from faas.gateway.schemas import Json, Schemas
from faas.identity import KEY_CHARACTERS
from faas.model import NAME_PATTERN, FunctionReport
from faas.version import __version__

INVOCATION_PATTERN = "^[a-z2-7]{26}$"
DURATION_PATTERN = "^([1-9][0-9]{2,5}ms|[1-9][0-9]{0,3}(s|m|h))$"
STREAM = "text/event-stream"
CLOUDEVENT = "application/cloudevents+json"
DESCRIPTION = (
    "Runs functions, at once or later. Every error is a problem document (RFC 9457) whose `code` is stable. An event may come as its data, "
    "or as a CloudEvent in binary or structured mode. The types of a function are in here once a worker of this node has loaded it."
)
PROBLEMS: Mapping[int, str] = {
    400: "What was sent is not what the function takes, or is no event.",
    401: "There is no token, or it is not known.",
    403: "The token is of another tenant, or has not the scope.",
    404: "There is no such thing.",
    405: "The path takes another method.",
    408: "It waited longer than it may, or the body did not come in time.",
    409: "It has ended already, or was never stored.",
    410: "Its result is no longer kept.",
    413: "The body is larger than it may be.",
    415: "The body is encoded in a way that is not supported.",
    422: "The function rejected it, or its idempotency key came with another payload before.",
    429: "A budget is used up.",
    431: "The headers are larger than they may be.",
    500: "The function failed.",
    502: "Its worker, or its node, died.",
    503: "There is no capacity, or the bus is away: ask again after Retry-After.",
    504: "It ran longer than it may.",
}
ASKED = (401, 403, 503)
OF_INVOKE = (400, 404, 408, 413, 415, 422, 429, 431, 500, 502, 504)
OF_HOOKS = (400, 401, 404, 408, 413, 415, 503)


@dataclass(slots=True, frozen=True)
class Described:
    """A function in full; `example` is its example_event.json, b"" where it has none."""

    report: FunctionReport
    example: bytes


class _Example(msgspec.Struct, frozen=True):
    data: msgspec.Raw = msgspec.Raw(b"")


def document(functions: Iterable[Described], *, secured: bool) -> Json:
    """The document; `secured`: callers need a token."""
    functions = list(functions)
    schemas = Schemas()
    _, own = msgspec.json.schema_components([StateDocument, ProblemDocument], ref_template="#/components/schemas/{name}")
    paths: Json = {}
    for described in functions:
        report = described.report
        paths[f"/invoke/{report.tenant}/{report.name}"] = {"post": _invoke(described, schemas)}
    paths["/invoke/{tenant}/{function}"] = {"parameters": [_named("tenant"), _named("function")], "post": _invoke_any()}
    hooks = sorted({(one.report.tenant, trigger.webhook) for one in functions for trigger in one.report.triggers if trigger.webhook})
    paths |= {f"/hooks/{tenant}/{webhook}": {"post": _hook(tenant, webhook)} for tenant, webhook in hooks}
    return {
        "openapi": "3.1.0",
        "info": {"title": "faas", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}] if secured else [],
        "paths": {**paths, **_invocations(), **_about()},
        "components": {
            "schemas": {**own, "Function": _FUNCTION, **schemas.components},
            "responses": {str(status): _problem(text) for status, text in PROBLEMS.items()},
            "parameters": _PARAMETERS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "`faas token new TENANT` makes a token."}},
        },
    }


# ---------------------------------------------------------------- invoke


def _invoke(described: Described, schemas: Schemas) -> Json:
    report = described.report
    prefix = f"{report.tenant}.{report.name}"
    taken, returned = schemas.add(report.input_schema, f"{prefix}.in"), schemas.add(report.output_schema, f"{prefix}.out")
    known = "" if report.loaded else " Its types are not known here yet: no worker of this node has loaded it."
    return {
        "operationId": f"invoke.{prefix}",
        "tags": [report.tenant],
        "summary": f"Run {report.name}",
        "description": f"Version {report.version} of the function {report.name} of the tenant {report.tenant}.{known}",
        "parameters": _ref_parameters(),
        "requestBody": _event(taken, described.example),
        "responses": _invoked(returned),
    }


def _invoke_any() -> Json:
    return {
        "operationId": "invoke",
        "summary": "Run a function by its name",
        "parameters": _ref_parameters(),
        "requestBody": _event(None, b""),
        "responses": _invoked(None),
    }


def _event(schema: Json | None, example: bytes) -> Json:
    """What a function takes: the data in its own type, or the whole event."""
    data: Json = {"schema": schema} if schema is not None else {}
    with suppress(msgspec.DecodeError, RecursionError):
        if (found := bytes(msgspec.json.decode(example or b"{}", type=_Example).data)) and schema is not None:
            data |= {"example": msgspec.Raw(found)}
    event = {
        "type": "object",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string", "minLength": 1},
            "source": {"type": "string", "minLength": 1},
            "type": {"type": "string", "minLength": 1},
            "time": {"type": "string", "format": "date-time"},
            "expirytime": {"type": "string", "format": "date-time"},
            "data": schema if schema is not None else {},
            "data_base64": {"type": "string", "contentEncoding": "base64"},
            "dataref": False,
        },
        "propertyNames": {"pattern": "^([a-z0-9]{1,64}|data_base64)$"},
        "additionalProperties": {"type": ["string", "boolean", "integer"], "minimum": -(2**31), "maximum": 2**31 - 1},
        "required": ["specversion", "id", "source", "type"],
        "not": {"required": ["data", "data_base64"]},
    }
    return {"content": {"application/json" if schema is not None else "*/*": data, CLOUDEVENT: {"schema": event}}}


def _invoked(schema: Json | None) -> Json:
    result: Json = {"application/json": {"schema": schema}} if schema is not None else {"*/*": {}}
    headers = {
        "Faas-Invocation": {"schema": {"type": "string", "pattern": INVOCATION_PATTERN}},
        "Faas-Outcome": {"schema": {"type": "string"}},
    }
    accepted = {
        "description": "The bus has the event.",
        "headers": {"Location": {"schema": {"type": "string"}}, "Faas-Invocation": headers["Faas-Invocation"]},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/StateDocument"}}},
        "links": {
            name: {"operationId": name, "parameters": {"id": "$response.header.Faas-Invocation"}}
            for name in ("invocation", "events", "cancel")
        },
    }
    return {
        "200": {"description": "The result of the function.", "headers": headers, "content": {**result, STREAM: {"schema": _SAID}}},
        "202": accepted,
        **_refs(*ASKED, *OF_INVOKE),
    }


_SAID: Json = {
    "type": "object",
    "description": "One event of the stream: `state`, `progress` or `chunk`, its data in JSON; the last `state` has ended.",
    "properties": {"event": {"type": "string"}, "id": {"type": "string"}, "data": {"type": "string"}, "retry": {"type": "integer"}},
}
_PARAMETERS: Json = {
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async`: 202 once it is stored; `wait=N`: so many seconds first (RFC 7240).",
        "schema": {"type": "string", "examples": ["respond-async", "wait=10"]},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Whoever repeats it within a day gets the outcome of the first request with it, which runs once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARACTERS, "pattern": "^[!-~]+$"},
    },
    "Faas-Timeout": {
        "name": "Faas-Timeout",
        "in": "header",
        "description": "How long it may run, like 250ms, 10s or 5m; never longer than the function's own limit.",
        "schema": {"type": "string", "pattern": DURATION_PATTERN, "examples": ["10s"]},
    },
    "Faas-Deadline": {
        "name": "Faas-Deadline",
        "in": "header",
        "description": "When it is to have ended.",
        "schema": {"type": "string", "format": "date-time"},
    },
}


def _ref_parameters() -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in _PARAMETERS]


# ---------------------------------------------------------------- the other doors


def _hook(tenant: str, webhook: str) -> Json:
    document = {
        "type": "object",
        "properties": {"event": {"type": "string"}, "invocations": {"type": "array", "items": {"type": "string"}}},
        "required": ["event", "invocations"],
    }
    return {
        "operationId": f"hook.{tenant}.{webhook}",
        "tags": [tenant],
        "summary": f"Deliver to the webhook {webhook}",
        "description": "Its signature says who sends it, in the headers that its sender's scheme has.",
        "security": [],
        "requestBody": {"content": {"*/*": {}}},
        "responses": {
            "200": {"description": "What the sender asked to be answered to prove that somebody is here.", "content": {"*/*": {}}},
            "202": {"description": "The bus has the event.", "content": {"application/json": {"schema": document}}},
            **_refs(*OF_HOOKS),
        },
    }


def _invocations() -> Json:
    one: Json = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": INVOCATION_PATTERN}}
    cancelled = {
        "type": "object",
        "properties": {"invocation": {"type": "string"}, "cancelled": {"const": True}},
        "required": ["invocation", "cancelled"],
    }
    state: Json = {"application/json": {"schema": {"$ref": "#/components/schemas/StateDocument"}}}
    return {
        "/invocations/{id}": {
            "parameters": [one],
            "get": _operation("invocation", "Where an invocation is, and its result", {**state, "*/*": {}}, 404, 410),
            "delete": _operation("cancel", "Cancel an invocation", {"application/json": {"schema": cancelled}}, 404, 409),
        },
        "/invocations/{id}/events": {
            "parameters": [one],
            "get": _operation("events", "Follow an invocation to its end", {STREAM: {"schema": _SAID}}, 404, 409, 410),
        },
    }


def _about() -> Json:
    functions: Json = {"type": "array", "items": {"$ref": "#/components/schemas/Function"}}
    status: Json = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    open_to_all: Json = {"security": []}
    return {
        "/functions": {"get": _operation("functions", "The functions of the caller's tenant", {"application/json": {"schema": functions}})},
        "/functions/{tenant}/{function}": {
            "parameters": [_named("tenant"), _named("function")],
            "get": _operation("function", "One function in full", {"application/json": {"schema": functions["items"]}}, 404),
        },
        "/openapi.json": {"get": _operation("openapi", "This document", {"application/json": {"schema": {"type": "object"}}})},
        "/healthz": {"get": _operation("healthz", "Whether the node lives", {"application/json": {"schema": status}}) | open_to_all},
        "/readyz": {"get": _operation("readyz", "Whether it can run functions", {"application/json": {"schema": status}}) | open_to_all},
        "/metrics": {
            "get": _operation("metrics", "What it counts, for Prometheus", {"text/plain": {"schema": {"type": "string"}}}) | open_to_all
        },
    }


def _operation(id: str, summary: str, content: Json, *problems: int) -> Json:
    return {
        "operationId": id,
        "summary": summary,
        "responses": {"200": {"description": "As asked.", "content": content}, **_refs(*ASKED, *problems)},
    }


_FUNCTION: Json = {
    "type": "object",
    "description": "A function, as `faas functions --json` has it.",
    "properties": {
        **{name: {"type": "string"} for name in ("name", "tenant", "version", "runtime", "error", "environment")},
        "state": {"enum": ["ready", "invalid", "withdrawn"]},
        "triggers": {"type": "array", "items": {"type": "object"}},
        "not_enforced": {"type": "array", "items": {"type": "string"}},
        "declaration": {"type": "object"},
        "secrets": {"type": "object", "additionalProperties": {"type": "string"}},
        "loaded": {"type": "boolean"},
        "input_schema": {"type": ["object", "null"]},
        "output_schema": {"type": ["object", "null"]},
    },
    "required": ["name", "tenant", "version", "runtime", "state"],
}


def _named(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"}}


def _problem(text: str) -> Json:
    return {"description": text, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}}


def _refs(*statuses: int) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(set(statuses))}
