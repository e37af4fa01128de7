"""Webhooks on a real node: what their senders sign comes in once, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

import aiohttp
import pytest
from deliveries import (
    GITHUB_PING,
    GITHUB_PULL_REQUEST,
    SLACK_CHALLENGE,
    SLACK_COMMAND,
    SLACK_EVENT,
    STANDARD_SECRET,
    STRIPE_EVENT,
    by_github,
    by_slack,
    by_standard,
    by_stripe,
)
from hooking import GITHUB, SLACK, STRIPE, hooked_node, ids, post
from node import Node, end, head

from faas.identity import invocation_id


@pytest.fixture(scope="module")
async def hooked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with hooked_node(tmp_path_factory.mktemp("hooks")) as node:
        yield node


@pytest.fixture
async def http(hooked: Node) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(hooked.info["http"]) as session:
        yield session


async def test_a_delivery_of_standard_webhooks_is_stored_and_runs(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Signed by the specification's own library. The 202 names what will be in the outcome."""
    body = b'{"type":"invoice.paid","data":{"id":"in_1"}}'
    answer = await post(http, "std", body, by_standard(STANDARD_SECRET, body, "msg_runs", time.time()))
    outcome = await hooked.outcome("msg_runs")

    assert answer[1] == {"event": "msg_runs", "invocations": [head(outcome)["Faas-Invocation"]]}
    assert ids(answer) == [invocation_id("default", "std", source="/hooks/default/std", event_id="msg_runs")]
    assert json.loads(outcome.data) == {
        "id": "msg_runs",
        "source": "/hooks/default/std",
        "type": "invoice.paid",
        "subject": "",
        "content_type": "application/json",
        "data": json.loads(body),
    }


async def test_a_delivery_of_github_is_an_event_of_its_kind(hooked: Node, http: aiohttp.ClientSession) -> None:
    """A function tells a pull request from a push by the type, as CloudEvents' adapter for GitHub names it."""
    await post(http, "gh", GITHUB_PULL_REQUEST, by_github(GITHUB, GITHUB_PULL_REQUEST, "72d3162e-cc78-11e3-81ab-4c9367dc0958"))
    told = json.loads((await hooked.outcome("72d3162e-cc78-11e3-81ab-4c9367dc0958")).data)

    assert (told["type"], told["subject"]) == ("com.github.pull_request.opened", "Codertocat/Hello-World")
    assert told["data"] == json.loads(GITHUB_PULL_REQUEST)


async def test_github_may_send_a_form(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Its default. What is signed is the form as it came, what a function gets is the JSON in it."""
    form = b"payload=" + quote(GITHUB_PULL_REQUEST).encode()
    headers = by_github(GITHUB, form, "a-form", content_type="application/x-www-form-urlencoded")
    ids(await post(http, "gh", form, headers))
    told = json.loads((await hooked.outcome("a-form")).data)

    assert (told["content_type"], told["data"]) == ("application/json", json.loads(GITHUB_PULL_REQUEST))


async def test_githubs_ping_is_answered_and_runs_nothing(hooked: Node, http: aiohttp.ClientSession) -> None:
    """It comes when the webhook is set up, and is about the webhook alone."""
    before = await hooked.count("FAAS_EVENTS", "faas.hook.default.gh")
    status, document, _ = await post(http, "gh", GITHUB_PING, by_github(GITHUB, GITHUB_PING, "a-ping", event="ping"))

    assert (status, document) == (200, {"event": "a-ping", "invocations": []})
    assert await hooked.count("FAAS_EVENTS", "faas.hook.default.gh") == before


async def test_a_ping_that_is_not_signed_is_not_answered(http: aiohttp.ClientSession) -> None:
    """Else anybody could have this node say what he likes."""
    status, document, _ = await post(http, "gh", GITHUB_PING, by_github("another", GITHUB_PING, "a-ping", event="ping"))

    assert (status, document["code"]) == (401, "signature_invalid")


async def test_an_event_of_stripe_has_its_own_id(hooked: Node, http: aiohttp.ClientSession) -> None:
    """The id is in what is signed, so a copy under another id cannot be made."""
    ids(await post(http, "stripe", STRIPE_EVENT, by_stripe(STRIPE, STRIPE_EVENT, time.time())))
    told = json.loads((await hooked.outcome("evt_123")).data)

    assert (told["type"], told["subject"]) == ("com.stripe.invoiceitem.created", "ii_123")


async def test_an_event_of_slack_is_one_however_often_it_is_tried(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Slack signs each try anew, with its own time."""
    secret, now = SLACK, time.time()
    first = await post(http, "slack", SLACK_EVENT, by_slack(secret, SLACK_EVENT, now - 10))
    again = await post(http, "slack", SLACK_EVENT, {**by_slack(secret, SLACK_EVENT, now), "x-slack-retry-num": "1"})
    told = json.loads((await hooked.outcome("Ev123ABC456")).data)

    assert ids(first) == ids(again)
    assert (told["type"], told["subject"]) == ("com.slack.message", "T123ABC456")
    assert await hooked.count("FAAS_EVENTS", "faas.hook.default.slack") == 1


async def test_slacks_challenge_is_answered_with_what_it_asks_for(http: aiohttp.ClientSession) -> None:
    """Slack sends events only to who answers it, and this answers only Slack."""
    secret = SLACK
    headers = by_slack(secret, SLACK_CHALLENGE, time.time())
    async with http.post("/hooks/default/slack", data=SLACK_CHALLENGE, headers=headers) as answer:
        said = await answer.text()
    forged = {**headers, "x-slack-signature": "v0=" + "0" * 64}
    async with http.post("/hooks/default/slack", data=SLACK_CHALLENGE, headers=forged) as refused:
        pass

    assert (answer.status, answer.content_type, said) == (200, "text/plain", "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P")
    assert refused.status == 401


async def test_a_command_of_slack_is_an_event_too(hooked: Node, http: aiohttp.ClientSession) -> None:
    """It is a form and has no id: the same request sent again is the same event all the same."""
    secret, now = SLACK, time.time()
    headers = by_slack(secret, SLACK_COMMAND, now, content_type="application/x-www-form-urlencoded")
    first, again = [await post(http, "slack", SLACK_COMMAND, headers) for _ in range(2)]
    told = json.loads((await hooked.outcome(str(first[1]["event"]))).data)

    assert ids(first) == ids(again)
    assert (told["type"], told["data"]) == ("com.slack.slash_command", SLACK_COMMAND.decode())


async def test_a_token_is_a_webhook_secret_too_and_its_id_is_the_senders(hooked: Node, http: aiohttp.ClientSession) -> None:
    """GitLab signs nothing, and says which event it is by a header."""
    headers = {
        "x-gitlab-token": "a token that nobody guesses ever",
        "x-gitlab-event": "Push Hook",
        "idempotency-key": "f5e5f430-f57b-4e6e-9fac-d9128cd7232f",
        "content-type": "application/json",
    }
    ids(await post(http, "token", b'{"object_kind":"push"}', headers))
    told = json.loads((await hooked.outcome("f5e5f430-f57b-4e6e-9fac-d9128cd7232f")).data)
    wrong = await post(http, "token", b"{}", {**headers, "x-gitlab-token": "another"})

    assert told["type"] == "Push Hook"
    assert wrong[0] == 401
    assert wrong[2]["WWW-Authenticate"] == "Bearer"


async def test_an_open_webhook_takes_anything(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Bodies that are no JSON, and senders that say nothing of them."""
    first = await post(http, "open", b"\x00any \xe9 bytes".replace(b"\xe9", b""), {"content-type": "application/octet-stream"})
    again = await post(http, "open", b"\x00any \xe9 bytes".replace(b"\xe9", b""), {"content-type": "application/octet-stream"})
    told = json.loads((await hooked.outcome(str(first[1]["event"]))).data)

    assert ids(first) != ids(again)  # without an id of the sender's each is an event of its own
    assert (told["type"], told["data"]) == ("faas.webhook", "\x00any  bytes")


async def test_a_cloudevent_in_a_body_is_data_and_no_identity(hooked: Node, http: aiohttp.ClientSession) -> None:
    """The 202 has named the invocation already: an id in the body must not make it another one."""
    body = b'{"specversion":"1.0","id":"inner","source":"/x","type":"t","data":1}'
    headers = {"content-type": "application/cloudevents+json", "x-delivery-id": "outer", "ce-id": "forged", "faas-timeout": "1ms"}
    answer = await post(http, "open", body, headers)
    outcome = await hooked.outcome("outer")

    assert ids(answer) == [head(outcome)["Faas-Invocation"]]
    assert end(outcome) == ("succeeded", "")
    assert json.loads(outcome.data)["data"] == json.loads(body)


async def test_a_delivery_sets_off_every_function_of_the_webhook(hooked: Node, http: aiohttp.ClientSession) -> None:
    """One event, one invocation for each, all of them in the answer."""
    answer = await post(http, "two", GITHUB_PULL_REQUEST, by_github(GITHUB, GITHUB_PULL_REQUEST, "for-two"))
    async with asyncio.timeout(8), hooked.arrived:
        await hooked.arrived.wait_for(lambda: len(hooked.outcomes.get("for-two", [])) == 2)

    assert sorted(ids(answer)) == sorted(head(outcome)["Faas-Invocation"] for outcome in hooked.outcomes["for-two"])


async def test_the_secret_before_still_holds(http: aiohttp.ClientSession) -> None:
    """A sender moves to a new secret when it moves; until then both are good."""
    ids(await post(http, "gh", GITHUB_PULL_REQUEST, by_github("the one before, which still holds", GITHUB_PULL_REQUEST, "by-old")))


# ---------------------------------------------------------------- replays, forgeries, staleness (F32, F23)


async def test_a_delivery_that_comes_again_is_answered_alike_and_runs_once(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Senders deliver again what was not answered in time: 202 with the same ids, and one execution."""
    body = b'{"type":"again"}'
    headers = by_standard(STANDARD_SECRET, body, "msg_again", time.time())
    answers = await asyncio.gather(*(post(http, "std", body, headers) for _ in range(8)))
    await hooked.outcome("msg_again")

    assert len({tuple(ids(answer)) for answer in answers}) == 1
    assert await hooked.count("FAAS_EVENTS", "faas.hook.default.std") >= 1
    assert [head(m)["ce-id"] for m in await hooked.stored("FAAS_EVENTS", "faas.hook.default.std")].count("msg_again") == 1
    assert len(hooked.outcomes["msg_again"]) == 1


async def test_a_delivery_that_comes_again_when_the_stream_has_forgotten_it_does_not_run_again(
    hooked: Node, http: aiohttp.ClientSession
) -> None:
    """The stream knows an id for two minutes; senders try for days. From then on it is the outcome that keeps it from running."""
    invocation = ids(await post(http, "gh", GITHUB_PULL_REQUEST, by_github(GITHUB, GITHUB_PULL_REQUEST, "late-again")))[0]
    first = await hooked.outcome("late-again")
    (stored,) = [m for m in await hooked.stored("FAAS_EVENTS", "faas.hook.default.gh") if head(m)["ce-id"] == "late-again"]
    headers = {**head(stored), "Nats-Msg-Id": "the window is over: the stream takes it as new"}
    await hooked.client.jetstream().publish("faas.hook.default.gh", stored.data, headers=headers)
    behind = await post(http, "gh", GITHUB_PULL_REQUEST, by_github(GITHUB, GITHUB_PULL_REQUEST, "behind-it"))
    await hooked.outcome("behind-it")

    assert ids(behind)
    assert len(await hooked.records("gh", invocation)) == 1
    assert hooked.outcomes["late-again"] == [first]


@pytest.mark.parametrize("off_s", [-3600, 3600, -301, 301])
async def test_what_was_signed_at_another_time_is_refused(http: aiohttp.ClientSession, off_s: int) -> None:
    """By the clock of the node: one that is an hour off refuses all, and `faas doctor` says whose clock is wrong."""
    body = b'{"type":"stale"}'
    answers = [
        await post(http, "std", body, by_standard(STANDARD_SECRET, body, "msg_stale", time.time() + off_s)),
        await post(http, "stripe", STRIPE_EVENT, by_stripe(STRIPE, STRIPE_EVENT, time.time() + off_s)),
        await post(http, "slack", SLACK_EVENT, by_slack(SLACK, SLACK_EVENT, time.time() + off_s)),
    ]

    assert [(status, document["code"]) for status, document, _ in answers] == [(401, "signature_invalid")] * 3
    assert all("time" in str(document["detail"]) for _, document, _ in answers)


async def test_a_forged_delivery_is_refused_and_leaves_nothing(hooked: Node, http: aiohttp.ClientSession) -> None:
    """Not an event, not a dead letter, not a log line of the function: it never happened."""
    body = b'{"type":"forged"}'
    before = await hooked.count("FAAS_EVENTS", "faas.hook.default.std")
    signed = by_standard(STANDARD_SECRET, body, "msg_forged", time.time())
    for headers, sent in (
        (signed, body + b" "),
        ({**signed, "webhook-id": "msg_other"}, body),
        ({**signed, "webhook-signature": "v1,AAAA"}, body),
        ({**signed, "webhook-signature": "nonsense \u00e9 ,,"}, body),
        ({"content-type": "application/json"}, body),
    ):
        status, document, got = await post(http, "std", sent, headers)
        assert (status, document["code"]) == (401, "signature_invalid")
        assert "WWW-Authenticate" in got

    assert await hooked.count("FAAS_EVENTS", "faas.hook.default.std") == before
