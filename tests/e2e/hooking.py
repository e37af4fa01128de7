"""A node with a webhook of each kind, and how a sender posts to it."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from deliveries import STANDARD_SECRET
from node import Node, running, write_function

GITHUB = "a secret of github, long enough"
OPEN = "def handle(event):\n    return event\n"
TELLS = """
import faas

def handle(event: faas.Event):
    return {"id": event.id, "source": event.source, "type": event.type, "subject": event.subject,
            "content_type": event.datacontenttype, "data": event.data if not isinstance(event.data, bytes) else event.data.decode()}
"""
STRIPE, SLACK = "whsec_of_stripe_which_is_long_enough", "8f742231b10e8888abcd99yyyzzz85a5"
Answer = tuple[int, dict[str, object], Mapping[str, str]]


def hook(name: str, verify: str, secret: str = "") -> str:
    return f'[[trigger]]\nwebhook = "{name}"\nverify = "{verify}"\n' + (f'secret = "{secret}"\n' if secret else "")


@asynccontextmanager
async def hooked_node(root: Path) -> AsyncIterator[Node]:
    """A node with a webhook of each kind."""
    functions, secrets = root / "functions", root / "secrets"
    secrets.mkdir(mode=0o700)
    for name, value in {
        "std_secret": STANDARD_SECRET,
        "gh_secret": GITHUB,
        "gh_secret.previous": "the one before, which still holds",
        "stripe_secret": "whsec_of_stripe_which_is_long_enough",
        "slack_secret": "8f742231b10e8888abcd99yyyzzz85a5",
        "token_secret": "a token that nobody guesses ever",
        "bad_secret": "no base64 at all!",
    }.items():
        (secrets / name).write_text(f"{value}\n")
        (secrets / name).chmod(0o600)
    write_function(functions, "std", TELLS, hook("std", "standard", "std_secret"))
    write_function(functions, "gh", TELLS, hook("gh", "github", "gh_secret") + hook("two", "github", "gh_secret"))
    write_function(functions, "also", OPEN, hook("two", "github", "gh_secret"))
    write_function(functions, "stripe", TELLS, hook("stripe", "stripe", "stripe_secret"))
    write_function(functions, "slack", TELLS, hook("slack", "slack", "slack_secret"))
    write_function(functions, "plain", TELLS, hook("token", "token", "token_secret") + hook("open", "none"))
    write_function(functions, "lost", OPEN, hook("lost", "github", "no_such_secret") + hook("bad", "standard", "bad_secret"))
    write_function(functions, "tiny", OPEN, hook("tiny", "none") + '[limits]\npayload = "1KiB"\n')
    write_function(functions, "big", "def handle(event: bytes):\n    return len(event)\n", hook("big", "none"))
    (root / "faas.toml").write_text(f'[secrets]\nfolder = "{secrets}"\n')
    async with running(functions, root / "state", "--config", str(root / "faas.toml")) as node:
        await node.watch()
        yield node


async def post(http: aiohttp.ClientSession, webhook: str, body: bytes | io.BytesIO, headers: dict[str, str]) -> Answer:
    async with http.post(f"/hooks/default/{webhook}", data=body, headers=headers) as answer:
        return answer.status, json.loads(await answer.read()), answer.headers


def ids(answer: Answer) -> list[str]:
    """The invocations that a 202 names."""
    status, document, _ = answer
    assert status == 202, document
    assert set(document) == {"event", "invocations"}
    return list(document["invocations"])  # type: ignore[call-overload]
