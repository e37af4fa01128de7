"""Deliveries of webhooks as their senders make them: vectors that they or their libraries published, and payloads in their documentation's shapes.

No signature here was made by code of this package. Where one has to be fresh, the senders' published algorithm is spelled out again (`signed_*`),
and `standardwebhooks` signs for itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Vector:
    """A request that somebody else has signed: `at_s` is when."""

    scheme: str
    secret: bytes
    headers: dict[str, str]
    body: bytes
    at_s: int


STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

STRIPE_EVENT = b"""{
  "id": "evt_123",
  "object": "event",
  "account": "acct_123",
  "api_version": "2017-05-25",
  "created": 1533204620,
  "data": {
    "object": {
      "id": "ii_123",
      "object": "invoiceitem",
      "amount": 1000,
      "currency": "usd",
      "customer": "cus_123",
      "date": 1533204620,
      "description": "Test Invoice Item",
      "discountable": false,
      "invoice": "in_123",
      "livemode": false,
      "metadata": {},
      "period": {
        "start": 1533204620,
        "end": 1533204620
      },
      "plan": null,
      "proration": false,
      "quantity": null,
      "subscription": null
    }
  },
  "livemode": false,
  "pending_webhooks": 1,
  "request": {
    "id": "req_123",
    "idempotency_key": "idempotency-key-123"
  },
  "type": "invoiceitem.created"
}
"""

SLACK_COMMAND = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA"
    b"&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554"
    b"%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)

SLACK_EVENT = (
    b'{"token":"ZZZZZZWSxiZZZ2yIvs3peJ","team_id":"T123ABC456","api_app_id":"A123ABC456","event":{"type":"message","channel":"C123ABC456",'
    b'"user":"U123ABC456","text":"Live long and prospect.","ts":"1355517523.000005","event_ts":"1355517523.000005","channel_type":"channel"},'
    b'"type":"event_callback","event_id":"Ev123ABC456","event_time":1355517523}'
)

SLACK_CHALLENGE = (
    b'{"token":"Jhj5dZrVaK7ZwHHjRyZWjbDl","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}'
)

VECTORS = (
    # Standard Webhooks: the specification's libraries all test with this one.
    Vector(
        "standard",
        STANDARD_SECRET.encode(),
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        b'{"test": 2432232314}',
        1614265330,
    ),
    # GitHub: "Validating webhook deliveries", testing the webhook payload validation.
    Vector(
        "github",
        b"It's a Secret to Everybody",
        {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
        b"Hello, World!",
        0,
    ),
    # Stripe: the test of its own library for .NET (EventUtilityTest).
    Vector(
        "stripe",
        b"webhook_secret",
        {
            "stripe-signature": "t=1533204620,v1=f0bdba6d4eacbd8ad8a3bbadd7248e633ec1477f7899c124c51b39405fa36613,"
            "v0=63f3a72374a733066c4be69ed7f8e5ac85c22c9f0a6a612ab9a025a9e4ee7eef"
        },
        STRIPE_EVENT,
        1533204620,
    ),
    # Stripe: two secrets, while one is rolled; each signature by stripe 16.1.0 for Python.
    Vector(
        "stripe",
        b"whsec_two",
        {
            "stripe-signature": "t=1492774577,v1=4ab49bf83357cdd39c1c9f40dc2f4603fbe1bbc0b1a071f4fa107d0c933a5fee,"
            "v1=ffe7a6653dcb0198b87962387a404a52288d6e0c334c7b78ecd6f533cc1b78a2"
        },
        b'{"id":"evt_1NG8Du2eZvKYlo2CUI79vXWy","object":"event","type":"setup_intent.created"}',
        1492774577,
    ),
    # Slack: "Verifying requests from Slack", a slash command.
    Vector(
        "slack",
        b"8f742231b10e8888abcd99yyyzzz85a5",
        {
            "x-slack-request-timestamp": "1531420618",
            "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        SLACK_COMMAND,
        1531420618,
    ),
    # Slack: the event of its documentation, signed by slack-sdk 3.48.0 for Python.
    Vector(
        "slack",
        b"8f742231b10e8888abcd99yyyzzz85a5",
        {
            "x-slack-request-timestamp": "1531420618",
            "x-slack-signature": "v0=197b5387055a892f29a0524c0c15f82c59d8f2d9a8180ebc07219bc9a6aa9dba",
        },
        SLACK_EVENT,
        1531420618,
    ),
    # RFC 4231, test case 2, as a sender would put it into a header.
    Vector(
        "hmac-sha256",
        b"Jefe",
        {"x-signature-256": "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
        b"what do ya want for nothing?",
        0,
    ),
)

GITHUB_PULL_REQUEST = json.dumps(
    {
        "action": "opened",
        "number": 2,
        "pull_request": {
            "url": "https://api.github.com/repos/Codertocat/Hello-World/pulls/2",
            "id": 279147437,
            "number": 2,
            "state": "open",
            "title": "Update the README with new information.",
            "user": {"login": "Codertocat", "id": 21031067, "type": "User"},
            "body": "This is a pretty simple change that we need to pull into master. \u00e9\u4e2d",
            "draft": False,
            "merged": False,
        },
        "repository": {"id": 186853002, "name": "Hello-World", "full_name": "Codertocat/Hello-World", "private": False},
        "sender": {"login": "Codertocat", "id": 21031067, "type": "User"},
    }
).encode()

GITHUB_PING = json.dumps(
    {
        "zen": "Keep it logically awesome.",
        "hook_id": 30,
        "hook": {"type": "Repository", "id": 30, "name": "web", "active": True, "events": ["pull_request"]},
        "repository": {"id": 186853002, "full_name": "Codertocat/Hello-World"},
    }
).encode()


def by_standard(secret: str, body: bytes, id: str, at_s: float) -> dict[str, str]:
    """Headers as the library of Standard Webhooks signs."""
    at = datetime.fromtimestamp(int(at_s), tz=UTC)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(int(at_s)),
        "webhook-signature": Webhook(secret).sign(id, at, body.decode()),
        "content-type": "application/json",
    }


def by_github(secret: str, body: bytes, id: str, event: str = "pull_request", content_type: str = "application/json") -> dict[str, str]:
    """Headers as "Delivery headers" of GitHub's documentation lists them."""
    return {
        "user-agent": "GitHub-Hookshot/044aadd",
        "content-type": content_type,
        "x-github-delivery": id,
        "x-github-event": event,
        "x-github-hook-id": "292430182",
        "x-hub-signature": "sha1=" + hmac.new(secret.encode(), body, hashlib.sha1).hexdigest(),
        "x-hub-signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }


def by_stripe(secret: str, body: bytes, at_s: float) -> dict[str, str]:
    """The header as Stripe's "Verify webhook signatures manually" has it made."""
    signature = hmac.new(secret.encode(), f"{int(at_s)}.".encode() + body, hashlib.sha256).hexdigest()
    return {"content-type": "application/json; charset=utf-8", "stripe-signature": f"t={int(at_s)},v1={signature}"}


def by_slack(secret: str, body: bytes, at_s: float, content_type: str = "application/json") -> dict[str, str]:
    """Headers as Slack's "Verifying requests from Slack" has them made."""
    signature = hmac.new(secret.encode(), f"v0:{int(at_s)}:".encode() + body, hashlib.sha256).hexdigest()
    return {"content-type": content_type, "x-slack-request-timestamp": str(int(at_s)), "x-slack-signature": f"v0={signature}"}
