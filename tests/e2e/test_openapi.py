"""The document of a node's doors, and what it says of functions: it is valid, and what speaks by it gets what it says."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from doors import Doors, problem
from node import SHORT_LEASE, Node, command, running, write_function
from openapi_spec_validator import OpenAPIV31SpecValidator

from faas.environments.profile import shipped_functions
from faas.security.tokens import digest_of

SHAPES = """from typing import Annotated, Generic, TypeVar

import msgspec

T = TypeVar("T")


class Circle(msgspec.Struct, tag=True):
    radius: Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Square(msgspec.Struct, tag=True):
    side: Annotated[int, msgspec.Meta(ge=0, le=10**6)]


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


class Area(msgspec.Struct):
    area: float
    of: Page[str]


def handle(event: Page[Circle | Square]) -> Area:
    areas = [shape.radius**2 if isinstance(shape, Circle) else shape.side**2 for shape in event.items]
    return Area(float(sum(areas)), Page([type(shape).__name__ for shape in event.items]))
"""
FUNCTIONS = {
    "shapes": (SHAPES, '[[trigger]]\nwebhook = "shapes"\nverify = "none"\n'),
    "back": ("def handle(event: bytes) -> bytes:\n    return event[::-1]\n", ""),
    "words": ("def handle(event: str):\n    yield from event.split()\n", ""),
    "anything": ("def handle(event):\n    return None\n", ""),
    "strict": (
        "import faas\ndef handle(event: dict[str, int]) -> int:\n    if not event:\n        raise faas.Reject('nothing in it')\n    return len(event)\n",
        "",
    ),
    "unloaded": ("def handle(event: int) -> int:\n    return event\n", ""),
}
LOADED = {"hello": b'{"name": "Ada"}', "shapes": b'{"items": []}', "back": b"x", "words": b'"x"', "anything": b"1", "strict": b'{"a": 1}'}
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance", "response_schema_conformance",
    "unsupported_method", "allow_header_conformance",
)  # fmt: skip
"""Neither positive_data_acceptance nor negative_data_rejection: a function may reject what fits its type, and what is handed in is looked at later."""
EXAMPLES = 6


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """One with an example function, and one for each kind of type that a worker can report."""
    root = tmp_path_factory.mktemp("openapi")
    shutil.copytree(shipped_functions() / "hello", root / "functions" / "hello")
    for name, (code, spec) in FUNCTIONS.items():
        write_function(root / "functions", name, code, spec)
    async with running(root / "functions", root / "state", "--environments", "current", environ=SHORT_LEASE) as node:
        async with http(node) as door:
            for name, body in LOADED.items():
                kind = {} if name == "back" else {"Content_Type": "application/json"}
                assert (await door.post(f"/invoke/default/{name}", body, **kind))[0] == 200, name
        yield node


@asynccontextmanager
async def http(node: Node, token: str = "") -> AsyncIterator[Doors]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(node.info["http"], headers=headers) as session:
        yield Doors(node, session)


async def read(node: Node, path: str, token: str = "") -> Any:
    async with http(node, token) as door:
        status, headers, body = await door.send("GET", path)
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


async def test_the_document_is_valid_openapi(node: Node) -> None:
    """Else no generator of clients takes it."""
    found = await read(node, "/openapi.json")

    assert found["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(found).validate()


async def test_a_function_is_in_the_document_with_the_types_that_its_worker_reported(node: Node) -> None:
    """Definitions of two functions do not meet, and references lead to them."""
    found = await read(node, "/openapi.json")
    operation = found["paths"]["/invoke/default/shapes"]["post"]
    taken = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    returned = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schemas = found["components"]["schemas"]
    item = schemas[taken]["properties"]["items"]["items"]

    assert (taken.startswith("default.shapes.in."), returned) == (True, "default.shapes.out.Area")
    assert sorted(at["$ref"].rpartition("/")[2] for at in item["anyOf"]) == ["default.shapes.in.Circle", "default.shapes.in.Square"]
    assert set(item["discriminator"]["mapping"].values()) == {at["$ref"] for at in item["anyOf"]}
    assert schemas["default.shapes.in.Circle"]["properties"]["radius"]["minimum"] == 0
    assert "not known here yet" in found["paths"]["/invoke/default/unloaded"]["post"]["description"]


async def test_the_example_of_a_function_is_in_the_document(node: Node) -> None:
    """What is tried first in a browser should run."""
    found = await read(node, "/openapi.json")
    content = found["paths"]["/invoke/default/hello"]["post"]["requestBody"]["content"]
    async with http(node) as door:
        status, _, _ = await door.post(
            "/invoke/default/hello", json.dumps(content["application/json"]["example"]).encode(), Content_Type="application/json"
        )

    assert status == 200


async def test_every_door_is_in_the_document_and_what_is_not_built_is_not(node: Node) -> None:
    """The contract's table; a path that only answers that it is not supported is none."""
    paths = set((await read(node, "/openapi.json"))["paths"])

    assert paths >= {
        "/invoke/{tenant}/{function}", "/hooks/default/shapes", "/invocations/{id}", "/invocations/{id}/events", "/functions", "/healthz", "/readyz",
        "/metrics", "/openapi.json",
    }  # fmt: skip
    assert "/usage" not in paths
    async with http(node) as door:
        assert problem(await door.send("GET", "/usage")) == (501, "not_supported_yet")


async def test_functions_over_http_are_those_of_the_command_line(node: Node) -> None:
    """One form for programs, whichever way they ask."""
    _, listed, _ = await command("functions", "--json", "--nats", node.info["nats"])
    _, shown, _ = await command("functions", "shapes", "--json", "--nats", node.info["nats"])

    assert await read(node, "/functions") == json.loads(listed)
    assert [await read(node, "/functions/default/shapes")] == json.loads(shown)


@pytest.mark.parametrize(
    "path", ["/functions/default/none", "/functions/none/hello", "/functions/Default/hello", "/functions/default/..%2Fhello"]
)
async def test_a_function_that_is_not_there_is_404(node: Node, path: str) -> None:
    """Names that nobody can have included."""
    async with http(node) as door:
        assert problem(await door.send("GET", path))[0] == 404


async def test_a_tenant_sees_its_own_functions_alone(tmp_path: Path) -> None:
    """In the list, in full, and in the document, which names types and webhooks too."""
    for tenant in ("acme", "other"):
        write_function(
            tmp_path / "functions", f"of-{tenant}", "def handle(event: int) -> int:\n    return event\n", f'tenant = "{tenant}"\n'
        )
    tokens = {tenant: f"faas_{tenant}_secret" for tenant in ("acme", "other")}
    config = tmp_path / "faas.toml"
    config.write_text(
        "".join(
            f'[[tenant]]\nname = "{tenant}"\n[[tenant.token]]\nsha256 = "{digest_of(token)}"\nscopes = ["read"]\nname = "t"\n'
            for tenant, token in tokens.items()
        )
    )
    options = ("--config", str(config), "--environments", "current")
    async with running(tmp_path / "functions", tmp_path / "state", *options, environ=SHORT_LEASE) as node:
        functions = await read(node, "/functions", tokens["acme"])
        document = await read(node, "/openapi.json", tokens["acme"])
        async with http(node, tokens["acme"]) as door:
            other = problem(await door.send("GET", "/functions/other/of-other"))
        async with http(node) as door:
            nobody = [
                problem(await door.send("GET", path)) for path in ("/functions", "/functions/acme/of-acme", "/openapi.json", "/usage")
            ]

    assert [one["name"] for one in functions] == ["of-acme"]
    assert "other" not in json.dumps(document["paths"])
    assert document["security"] == [{"bearer": []}]
    assert other == (403, "forbidden")
    assert [answer[0] for answer in nobody] == [401] * 4


@pytest.mark.timeout(120)
async def test_a_client_that_tries_what_the_document_allows_finds_no_server_error(node: Node, tmp_path: Path) -> None:
    """And nothing that the document does not say: statuses, types, headers and bodies of the answers, to requests that fit it and that do not."""
    said = await tried(node, tmp_path)

    assert "Tested: 17" in said, said[-1500:]


@pytest.mark.torch
@pytest.mark.timeout(300)
async def test_a_client_that_tries_the_example_functions_finds_no_server_error(examples: Node, tmp_path: Path) -> None:
    """What a newcomer tries first, with models and pictures: odd input is refused, and breaks nothing."""
    names = sorted(folder.name for folder in shipped_functions().iterdir() if (folder / "example_event.json").exists())
    async with http(examples) as door:
        for name in names:
            event = (shipped_functions() / name / "example_event.json").read_bytes()
            example = json.loads(event) | {"id": name}
            answer = await door.post(f"/invoke/default/{name}", json.dumps(example).encode(), Content_Type="application/cloudevents+json")
            assert answer[0] == 200, (name, answer[2][:500])
    said = await tried(examples, tmp_path, "--include-path-regex", "^/invoke/default/", "--phases", "examples,coverage,fuzzing")

    assert f"Tested: {len(names)}" in said, said[-1500:]


async def tried(node: Node, folder: Path, *options: str) -> str:
    """What schemathesis says when it has found nothing; the same requests each time."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"), "run", f"{node.info['http']}/openapi.json", "--checks", ",".join(CHECKS),
        "--max-examples", str(EXAMPLES), "--generation-deterministic", "--continue-on-failure", "--suppress-health-check", "all",
        "--request-timeout", "20", "--no-color", *options,
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()[-6000:]
    return out.decode()
