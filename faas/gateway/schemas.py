"""The JSON Schemas that workers report, made part of one OpenAPI document: definitions get names of their own, and references follow them. Pure.

A schema comes from where the author's code runs, so it may say anything: one that points elsewhere, or is no schema by its shape, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

DEPTH_LIMIT = 64
_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]")
_LOCAL = "#/$defs/"
_OF_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "dependentSchemas"))
"""Keywords whose members are schemas by names that the author chose."""
_A_SCHEMA = frozenset(
    ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
)
_SCHEMAS = frozenset(("anyOf", "allOf", "oneOf", "prefixItems"))
_SIMPLE: Mapping[str, type | tuple[type, ...]] = {
    "type": (str, list), "title": str, "description": str, "format": str, "pattern": str, "required": list, "enum": list, "minLength": int,
    "maxLength": int, "minItems": int, "maxItems": int, "minProperties": int, "maxProperties": int, "minimum": (int, float), "maximum": (int, float),
    "exclusiveMinimum": (int, float), "exclusiveMaximum": (int, float), "multipleOf": (int, float), "contentEncoding": str, "uniqueItems": bool,
    "contentMediaType": str, "deprecated": bool, "discriminator": dict, "default": object, "const": object, "examples": list,
}  # fmt: skip
_TYPES = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
Json = dict[str, object]


class _Unfit(Exception):
    """It is no schema that a document can hold."""


class Schemas:
    """The named schemas of one document; `add` those of a function, then take `components`."""

    def __init__(self) -> None:
        self.components: Json = {}

    def add(self, text: str, prefix: str) -> Json | None:
        """A reported schema as it may stand anywhere in the document; None where there is none, or none that could be in it."""
        try:
            schema = msgspec.json.decode(text, type=Json) if text else {}
            named = schema.pop("$defs", {})
            if not schema or not isinstance(named, dict):
                return None
            names = self._names(named, prefix)
            found = {names[name]: _adopted(definition, names, depth=0) for name, definition in named.items()}
            whole = _adopted(schema, names, depth=0)
        except (_Unfit, msgspec.DecodeError, RecursionError, TypeError):
            return None
        self.components |= found
        return whole

    def _names(self, named: Json, prefix: str) -> dict[str, str]:
        """Every definition -> its name in the document: two functions may each have an `In`, and one two that differ by illegal characters."""
        names: dict[str, str] = {}
        for name in named:
            wanted = f"{prefix}.{_ILLEGAL.sub('_', name)}"
            while wanted in self.components or wanted in names.values():
                wanted += "_"
            names[name] = wanted
        return names


def _adopted(schema: object, names: Mapping[str, str], *, depth: int) -> Json:
    if not isinstance(schema, dict) or depth > DEPTH_LIMIT:
        raise _Unfit
    return {key: _member(key, value, names, depth=depth + 1) for key, value in schema.items()}


def _member(key: str, value: object, names: Mapping[str, str], *, depth: int) -> object:
    if key == "$ref":
        if not isinstance(value, str) or value.removeprefix(_LOCAL) not in names:
            raise _Unfit
        return f"#/components/schemas/{names[value.removeprefix(_LOCAL)]}"
    if key in _A_SCHEMA:
        return value if isinstance(value, bool) else _adopted(value, names, depth=depth)
    if key in _SCHEMAS:
        if not isinstance(value, list) or not value:
            raise _Unfit
        return [_adopted(item, names, depth=depth) for item in value]
    if key in _OF_SCHEMAS:
        if not isinstance(value, dict):
            raise _Unfit
        return {name: _adopted(item, names, depth=depth) for name, item in value.items()}
    kind = _SIMPLE.get(key)
    if kind is None or not isinstance(value, kind) or (key == "type" and not set(value if isinstance(value, list) else [value]) <= _TYPES):
        raise _Unfit
    return _discriminator(value, names) if key == "discriminator" else value


def _discriminator(value: object, names: Mapping[str, str]) -> Json:
    """What msgspec writes beside a tagged union: which tag is which definition."""
    if not isinstance(value, dict) or not isinstance(value.get("propertyName"), str):
        raise _Unfit
    mapping = value.get("mapping", {})
    if not isinstance(mapping, dict) or not all(isinstance(at, str) and at.removeprefix(_LOCAL) in names for at in mapping.values()):
        raise _Unfit
    named = {tag: f"#/components/schemas/{names[at.removeprefix(_LOCAL)]}" for tag, at in mapping.items()}
    return {"propertyName": value["propertyName"], **({"mapping": named} if named else {})}
