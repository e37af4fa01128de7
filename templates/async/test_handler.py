"""The handler without a node: a coroutine, run to its end."""

import asyncio
import hashlib

from handler import Text, handle

import faas

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


def test_every_algorithm_has_its_digest() -> None:
    digests = asyncio.run(handle(Text(text="hello", algorithms=["sha256", "sha512"]), CONTEXT))

    assert digests == {"sha256": hashlib.sha256(b"hello").hexdigest(), "sha512": hashlib.sha512(b"hello").hexdigest()}


def test_without_a_choice_it_is_sha256() -> None:
    assert list(asyncio.run(handle(Text(text=""), CONTEXT))) == ["sha256"]
