"""The HTTP door as programs meet it: what it answers while the node starts, who may come in, and that every error has one form."""

from __future__ import annotations

import aiohttp
import pytest
from node import Node


@pytest.fixture
async def http(node: Node) -> aiohttp.ClientSession:
    async with aiohttp.ClientSession(node.info["http"]) as session:
        yield session


async def test_what_is_not_there_is_a_problem_document(http: aiohttp.ClientSession) -> None:
    """A client reads one shape for every error."""
    async with http.get("/nothing/here") as answer:
        document = await answer.json(content_type="application/problem+json")

    assert (answer.status, document["status"], document["code"]) == (404, 404, "not_found")
