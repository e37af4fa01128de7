"""What is no delivery of a webhook, or none that is taken: each is said in words, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from deliveries import (
    GITHUB_PULL_REQUEST,
    by_github,
    by_stripe,
)
from hooking import GITHUB, STRIPE, hooked_node, ids, post
from node import Node, end


@pytest.fixture(scope="module")
async def hooked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with hooked_node(tmp_path_factory.mktemp("hooks")) as node:
        yield node


@pytest.fixture
async def http(hooked: Node) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(hooked.info["http"]) as session:
        yield session


@pytest.mark.parametrize(
    "path",
    [
        "/hooks/default/nosuch",
        "/hooks/nobody/gh",
        "/hooks/default/GH",
        "/hooks/default/gh%2Fgh",
        "/hooks/default/a.b",
        "/hooks/default/%3E",
        "/hooks/%2A/gh",
    ],
)
async def test_a_webhook_that_nobody_has_is_unknown(http: aiohttp.ClientSession, path: str) -> None:
    """Whatever is in the path reaches no subject unless it is the name of a webhook."""
    async with http.post(path, data=b"{}", headers={"content-type": "application/json"}) as answer:
        document = await answer.json(content_type="application/problem+json")

    assert answer.status == 404
    assert str(document["code"]).startswith("unknown_")


async def test_a_body_that_no_function_takes_is_refused_before_it_is_read(http: aiohttp.ClientSession) -> None:
    """`limits.payload` of the function; the connection serves the next request."""
    for size, status in ((1024, 202), (1025, 413)):
        assert (await post(http, "tiny", b"x" * size, {"content-type": "text/plain"}))[0] == status

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async with http.post("/hooks/default/tiny", data=chunks()) as answer:
        assert answer.status == 413


async def test_a_body_above_what_the_bus_takes_goes_through_the_object_store(hooked: Node, http: aiohttp.ClientSession) -> None:
    """GitHub sends up to 25 MB; at the boundary the connection to the bus survives."""
    edge = 2**20
    for size in (edge - 5000, edge - 4096, edge, edge + 1, 3 * 2**20):
        headers = {"content-type": "application/octet-stream", "x-delivery-id": f"large-{size}"}
        ids(await post(http, "big", io.BytesIO(b"x" * size), headers))
        assert json.loads((await hooked.outcome(f"large-{size}")).data) == size


async def test_strangers_do_not_fill_the_memory_of_the_node_with_bodies_that_nobody_has_verified(
    hooked: Node, http: aiohttp.ClientSession
) -> None:
    """A signature is over the whole body, so that is in memory before anybody knows who sends it: of all large ones together there is a bound."""
    megabyte, size, json_type = b"x" * 2**20, 60, {"content-type": "application/json"}
    head = f"POST /hooks/default/gh HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size * 2**20 + 1}\r\n\r\n"
    host, _, port = hooked.info["http"].removeprefix("http://").rpartition(":")
    writers = []
    for _ in range(2):
        _, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        writer.write(head.encode())
        for _ in range(size):
            writer.write(megabyte)
            await writer.drain()

    assert (await post(http, "gh", io.BytesIO(megabyte * size), json_type))[0] == 503
    ids(await post(http, "open", b"x" * 60_000, {}))

    for writer in writers:
        writer.transport.abort()
    assert (await post(http, "gh", io.BytesIO(megabyte * size), json_type))[0] == 401


async def test_a_compressed_body_is_refused(http: aiohttp.ClientSession) -> None:
    """What is signed is what came; and a small body that unpacks to a large one is an old trick."""
    status, document, _ = await post(http, "open", b"\x1f\x8b", {"content-encoding": "gzip"})

    assert (status, document["code"]) == (415, "unsupported_coding")


@pytest.mark.parametrize("webhook", ["gh", "stripe", "slack"])
async def test_a_content_type_that_the_sender_does_not_have_is_refused(http: aiohttp.ClientSession, webhook: str) -> None:
    """It was not them."""
    status, document, _ = await post(http, webhook, b"<a/>", {"content-type": "text/xml"})

    assert (status, document["code"]) == (415, "unsupported_type")


@pytest.mark.parametrize(
    ("body", "changed"),
    [(b"{", {}), (b"", {}), (b"{}", {"x-github-delivery": ""}), (b"{}", {"x-github-delivery": "x" * 256}), (b"{}", {"x-github-event": ""})],
)
async def test_a_signed_delivery_that_is_none_is_malformed(http: aiohttp.ClientSession, body: bytes, changed: dict[str, str]) -> None:
    """Its sender hears of it; no retry will make it better, and no function is asked."""
    status, document, _ = await post(http, "gh", body, {**by_github(GITHUB, body, "broken"), **changed})

    assert (status, document["code"]) == (400, "event_invalid")


async def test_an_event_of_stripe_without_an_id_is_malformed(http: aiohttp.ClientSession) -> None:
    """Without it nothing tells one delivery from the next."""
    body = b'{"object":"event","type":"a"}'
    status, document, _ = await post(http, "stripe", body, by_stripe(STRIPE, body, time.time()))

    assert (status, document["code"]) == (400, "event_invalid")


@pytest.mark.parametrize("webhook", ["lost", "bad"])
async def test_a_webhook_whose_secret_is_not_there_lets_nobody_in(hooked: Node, http: aiohttp.ClientSession, webhook: str) -> None:
    """503 and not 401: its sender is right, and keeps what it has until the secret is there. Where it was looked for is for the log alone."""
    status, document, headers = await post(http, webhook, b"{}", by_github("", b"{}", "x"))

    assert (status, document["code"]) == (503, "secret_missing")
    assert headers["Retry-After"]
    assert "secrets/" not in str(document["detail"])
    assert "no_such_secret" in (hooked.state / "node.log").read_text()


async def test_what_an_administrator_should_know_of_a_webhook_is_said_at_start(hooked: Node) -> None:
    """A webhook that anybody may send to is there because somebody wrote it; whoever runs the node reads it too."""
    said = (hooked.state / "node.log").read_text()

    assert "whoever reaches this node may send to it" in said
    assert "nobody can send to it: secret no_such_secret" in said


async def test_only_a_post_is_a_delivery(http: aiohttp.ClientSession) -> None:
    """Browsers and crawlers get."""
    async with http.get("/hooks/default/gh") as answer:
        assert answer.status == 405


async def test_headers_of_a_delivery_control_nothing(hooked: Node, http: aiohttp.ClientSession) -> None:
    """They are not signed: nobody may send a reply elsewhere, or another tenant's event, by a header of HTTP."""
    headers = {
        "content-type": "application/json",
        "x-delivery-id": "no-control",
        "faas-reply-to": "somewhere.else",
        "faas-deadline": "2001-01-01T00:00:00Z",
        "nats-msg-id": "mine",
        "nats-expected-stream": "OTHER",
        "ce-source": "/elsewhere",
    }
    ids(await post(http, "open", b"{}", headers))
    outcome = await hooked.outcome("no-control")

    assert end(outcome) == ("succeeded", "")
    assert json.loads(outcome.data)["source"] == "/hooks/default/open"


async def test_a_page_in_a_browser_cannot_post_to_an_open_webhook(http: aiohttp.ClientSession) -> None:
    """A node without tenants serves its own machine, and a browser there sends what any page in it says."""
    for headers in ({"origin": "https://example.org"}, {"host": "example.org"}):
        status, document, _ = await post(http, "open", b"{}", {"content-type": "application/json", **headers})

        assert (status, document["code"]) == (403, "no_tenants")


async def test_what_is_signed_may_come_through_a_tunnel(http: aiohttp.ClientSession) -> None:
    """Whoever tries a webhook out has the sender's requests forwarded, with the name of the tunnel in them."""
    ids(await post(http, "gh", GITHUB_PULL_REQUEST, {**by_github(GITHUB, GITHUB_PULL_REQUEST, "tunnelled"), "host": "abc.example.org"}))


ODD = (
    "",
    " ",
    "v1,",
    "t=1,v1=",
    "sha256=",
    "v0=",
    "Bearer ",
    "\u00e9",
    "a" * 4000,
    "*",
    ">",
    "../..",
    "%00",
    "'; DROP",
    "$(id)",
    "1e9",
    "-1",
    "nan",
)
SIGNED_BY = ("webhook-id", "webhook-timestamp", "webhook-signature", "x-hub-signature-256", "x-github-delivery", "x-github-event", "stripe-signature",
             "x-slack-signature", "x-slack-request-timestamp", "authorization", "x-gitlab-token", "content-type", "x-delivery-id", "traceparent")  # fmt: skip


async def test_nothing_that_a_stranger_sends_is_our_failure(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Odd headers and bodies in every mixture: a refusal in words each time, no 5xx, and no line in the log that tells of a mistake of ours."""
    chance = random.Random(32)
    bodies = (
        b"",
        b"{}",
        b"[" * 5000,
        b"\x00\xff",
        b"payload=%7B%7D",
        b'{"type":"url_verification","challenge":"x"}',
        chance.randbytes(900),
    )
    answered = set()
    for _ in range(400):
        headers = {name: chance.choice(ODD) for name in chance.sample(SIGNED_BY, chance.randrange(1, 6))}
        webhook = chance.choice(("std", "gh", "stripe", "slack", "token", "open"))
        async with http.post(f"/hooks/default/{webhook}", data=chance.choice(bodies), headers=headers) as answer:
            answered.add((webhook == "open", answer.status))

    assert {status for is_open, status in answered if not is_open} <= {400, 401, 415}
    assert {status for is_open, status in answered if is_open} <= {202, 400}
    assert "request.failed" not in (hooked.state / "node.log").read_text()
