"""JSON Schemas as workers report them, in one OpenAPI document: names do not meet, and what an author wrote breaks nobody else's part of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from faas.gateway.openapi import Described, document
from faas.gateway.schemas import Schemas
from faas.model import FunctionReport


class Leaf(msgspec.Struct, tag=True):
    n: Annotated[int, msgspec.Meta(ge=0, extra_json_schema={"examples": [1]})]


class Tree(msgspec.Struct, tag=True):
    """A type that names itself."""

    children: list[Tree | Leaf] = []
    kind: Literal["a", "b"] | None = None
    sizes: tuple[int, float] = (1, 2.0)
    names: dict[str, Annotated[str, msgspec.Meta(min_length=1, pattern="^a")]] = {}
    data: bytes = b""


def reported(name: str, schema: str, *, tenant: str = "default", example: bytes = b"") -> Described:
    report = FunctionReport(name=name, tenant=tenant, version="1", runtime="standard", state="ready", loaded=True, input_schema=schema)
    return Described(report, example)


def schema_text(annotation: Any) -> str:
    return json.dumps(msgspec.json.schema(annotation))


def taken(found: dict[str, Any], path: str) -> dict[str, Any]:
    content: dict[str, Any] = found["paths"][path]["post"]["requestBody"]["content"]
    return content


def test_two_functions_with_one_name_for_their_types_keep_them_apart() -> None:
    """Every author has an `In`."""
    one, other = (msgspec.defstruct("In", [("x", kind)]) for kind in (int, str))
    found: Any = document([reported("one", schema_text(one)), reported("other", schema_text(other))], secured=False)
    schemas = found["components"]["schemas"]

    assert schemas["default.one.in.In"]["properties"] == {"x": {"type": "integer"}}
    assert schemas["default.other.in.In"]["properties"] == {"x": {"type": "string"}}


def test_every_form_that_msgspec_writes_stays_whole() -> None:
    """Recursive types, unions, constraints, defaults and tuples are what functions take."""
    found: Any = document([reported("tree", schema_text(Tree))], secured=True)
    OpenAPIV31SpecValidator(found).validate()
    tree = found["components"]["schemas"]["default.tree.in.Tree"]["properties"]

    assert tree["children"]["items"]["discriminator"]["mapping"]["Leaf"] == "#/components/schemas/default.tree.in.Leaf"
    assert tree["sizes"]["prefixItems"] == [{"type": "integer"}, {"type": "number"}]
    assert tree["names"]["additionalProperties"] == {"type": "string", "minLength": 1, "pattern": "^a"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1/x"},
        {"$ref": "#/components/schemas/ProblemDocument"},
        {"$ref": "#/$defs/Gone"},
        {"$ref": 1},
        {"type": "nonsense"},
        {"type": [["object"]]},
        {"type": "object", "properties": []},
        {"anyOf": {}},
        {"anyOf": []},
        {"items": 3},
        {"$id": "http://127.0.0.1/"},
        {"$dynamicRef": "#x"},
        {"$defs": []},
        {"discriminator": {"propertyName": "x", "mapping": {"a": "http://127.0.0.1/"}}},
        {"properties": {"x": {"properties": {"y": {"$ref": "file:///etc/passwd"}}}}},
        {"maxLength": "long"},
    ],
    ids=json.dumps,
)
def test_a_schema_that_points_elsewhere_or_is_none_is_left_out(schema: object) -> None:
    """The author's code runs where it comes from: no reader of the document follows it anywhere, and the rest stays valid."""
    found: Any = document([reported("odd", json.dumps(schema)), reported("good", schema_text(int))], secured=False)
    OpenAPIV31SpecValidator(found).validate()

    assert "*/*" in taken(found, "/invoke/default/odd")
    assert taken(found, "/invoke/default/good")["application/json"]["schema"] == {"type": "integer"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["object", "string", "#/$defs/A", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$ref", "$defs", "A", "type", "properties", "items", "anyOf", "default", "required", "enum", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    schema=st.dictionaries(st.sampled_from(["$ref", "$defs", "type", "properties", "items", "anyOf", "default", "title"]), JSON, max_size=4)
)
def test_whatever_is_reported_is_taken_or_left_out(schema: dict[str, object]) -> None:
    """It never raises, so that one function hides no other."""
    schemas = Schemas()
    whole = schemas.add(json.dumps(schema), "default.f.in")

    assert whole is None or "$ref" not in whole or str(whole["$ref"]).startswith("#/components/schemas/default.f.in.")


@pytest.mark.parametrize("example", [b"", b"{", b"[1]", b'{"data": {"a": 1}}', b'{"data_base64": "AA=="}', b"[" * 100_000])
def test_an_example_that_cannot_be_read_breaks_nothing(example: bytes) -> None:
    """It is a file of the author's."""
    found: Any = document([reported("f", schema_text(dict[str, int]), example=example)], secured=False)
    encoded = json.loads(msgspec.json.encode(found))
    OpenAPIV31SpecValidator(encoded).validate()

    assert ("example" in taken(encoded, "/invoke/default/f")["application/json"]) == (example == b'{"data": {"a": 1}}')
