"""Signatures of webhooks: what their senders published verifies, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from deliveries import STANDARD_SECRET, STRIPE_EVENT, VECTORS, Vector, by_slack, by_standard, by_stripe
from hypothesis import given
from hypothesis import strategies as st

from faas.security.signatures import TOLERANCE_S, Request, SecretUnusable, problem_with, verify

_SIGNATURE = re.compile(r"[0-9a-f]{64}|[A-Za-z0-9+/]{43}=")
TIMED = [vector for vector in VECTORS if vector.at_s]


def checked(vector: Vector, **changed: object) -> str:
    given = {"headers": vector.headers, "body": vector.body, "now_s": vector.at_s, "secrets": [vector.secret], **changed}
    request = Request(given["headers"], given["body"], given["now_s"])  # type: ignore[arg-type]
    return verify(vector.scheme, request, given["secrets"])  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.scheme)
def test_what_senders_have_published_verifies(vector: Vector) -> None:
    """Signed by their code and not by ours: a scheme that both ends got wrong alike would pass any other test."""
    assert checked(vector) == ""


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.scheme)
def test_any_other_byte_of_the_body_is_refused(vector: Vector) -> None:
    """What is verified is the body as it came: no space more, no byte less."""
    for body in (vector.body + b" ", vector.body[:-1], b"", bytes([vector.body[0] ^ 0x80]) + vector.body[1:]):
        assert checked(vector, body=body) != ""


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.scheme)
def test_another_secret_is_refused(vector: Vector) -> None:
    """The point of it all."""
    other = STANDARD_SECRET[:-1] + "A" if vector.scheme == "standard" else "another"

    assert checked(vector, secrets=[other.encode()]) == "its signature does not match"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.scheme)
def test_a_signature_with_one_other_digit_is_refused(vector: Vector) -> None:
    """Each digit counts, the last ones too."""
    name, value = next((name, value) for name, value in vector.headers.items() if "signature" in name)
    for place in range(42):  # a base64 of 32 bytes has 43 characters, and its last one holds two bits of nothing
        forged = _with_another(value, place)

        assert checked(vector, headers={**vector.headers, name: forged}) != "", forged


def _with_another(header: str, place: int) -> str:
    """The header with that character of every signature in it replaced."""

    def replaced(match: re.Match[str]) -> str:
        return match[0][:place] + ("1" if match[0][place] == "0" else "0") + match[0][place + 1 :]

    return _SIGNATURE.sub(replaced, header)


@pytest.mark.parametrize("vector", TIMED, ids=lambda vector: vector.scheme)
def test_a_time_may_be_off_as_far_as_is_tolerated_and_no_further(vector: Vector) -> None:
    """A recorded request cannot be sent again tomorrow, and a sender's clock need not be ours; a time to come is no better than an old one."""
    for off in (-TOLERANCE_S, 0, TOLERANCE_S):
        assert checked(vector, now_s=vector.at_s + off) == ""
    for off in (-TOLERANCE_S - 1, TOLERANCE_S + 1, 3600, -3600):
        assert "time" in checked(vector, now_s=vector.at_s + off)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.scheme)
def test_an_old_and_a_new_secret_hold_at_once(vector: Vector) -> None:
    """A secret is rotated without a delivery lost: the sender moves from one to the other at a moment of its own."""
    other = b"whsec_" + base64.b64encode(b"o" * 24) if vector.scheme == "standard" else b"another secret"

    assert checked(vector, secrets=[other, vector.secret]) == ""
    assert checked(vector, secrets=[vector.secret, other]) == ""


def test_a_sender_that_rotates_sends_two_signatures() -> None:
    """Standard Webhooks: space-separated, and those of a scheme that we do not have are passed over."""
    body, now = b'{"type":"a"}', 1_700_000_000
    old = by_standard(STANDARD_SECRET, body, "msg_1", now)
    both = {**old, "webhook-signature": f"v1a,Zm9v v1,AAAA {old['webhook-signature']}"}

    assert verify("standard", Request(both, body, now), [STANDARD_SECRET.encode()]) == ""


@pytest.mark.parametrize("scheme", ["standard", "github", "stripe", "slack", "hmac-sha256", "token"])
def test_a_request_without_a_signature_is_refused_and_told_what_is_missing(scheme: str) -> None:
    """Whoever sets a sender up reads it in the sender's own list of deliveries."""
    secret = STANDARD_SECRET.encode() if scheme == "standard" else b"secret"
    said = verify(scheme, Request({}, b"{}", 0), [secret])  # type: ignore[arg-type]

    assert "missing" in said


@pytest.mark.parametrize("scheme", ["standard", "github", "stripe", "slack", "hmac-sha256", "token"])
@pytest.mark.parametrize("secrets", [[], [b""], [b"secret", b""]])
def test_an_empty_secret_lets_nobody_in(scheme: str, secrets: list[bytes]) -> None:
    """Anybody can sign with nothing. An empty file is a mistake, and no way in."""
    with pytest.raises(SecretUnusable):
        verify(scheme, Request({}, b"{}", 0), secrets)  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", [b"whsec_", b"no base64!", b"whsec_\xff"])
def test_a_secret_that_is_none_of_standard_webhooks_is_said_to_be_unusable(secret: bytes) -> None:
    """It is our mistake and not the sender's: a 401 would have the sender looked at."""
    body, now = b"{}", 1_700_000_000
    with pytest.raises(SecretUnusable):
        verify("standard", Request(by_standard(STANDARD_SECRET, body, "msg_1", now), body, now), [secret])


def test_an_id_with_a_dot_is_refused() -> None:
    """What is signed is joined by dots: id a, body 1.b and id a.1, body b would be the same bytes."""
    now = 1_700_000_000
    headers = by_standard(STANDARD_SECRET, f"{now}.b".encode(), "a", now)
    moved = {**headers, "webhook-id": f"a.{now}"}

    assert "dot" in verify("standard", Request(moved, b"b", now), [STANDARD_SECRET.encode()])


def test_a_time_is_plain_digits() -> None:
    """int() takes "+1", "1_0" and digits of other scripts, so that one signed time could be written in many ways."""
    now = 1_700_000_000
    for stamp in (f"+{now}", f" {now}", "1_700_000_000", f"{now}.5", "", "nan", "१७००००००००", "9" * 30):
        headers = {**by_slack("secret", b"{}", now), "x-slack-request-timestamp": stamp}
        assert verify("slack", Request(headers, b"{}", now), [b"secret"]) != ""
        assert verify("stripe", Request({"stripe-signature": f"t={stamp},v1=00"}, b"{}", now), [b"s"]) != ""


def test_the_signature_of_stripes_test_mode_counts_for_nothing() -> None:
    """Stripe: schemes other than v1 are to be ignored, or an attacker chooses the weakest."""
    now = 1533204620
    only = by_stripe("webhook_secret", STRIPE_EVENT, now)["stripe-signature"].replace("v1=", "v0=")

    assert verify("stripe", Request({"stripe-signature": only}, STRIPE_EVENT, now), [b"webhook_secret"]) != ""


def test_two_times_in_one_header_are_none() -> None:
    """Which of them was signed, and which was looked at?"""
    now = 1533204620
    header = by_stripe("s", b"{}", now)["stripe-signature"]

    assert verify("stripe", Request({"stripe-signature": f"t={now - 9},{header}"}, b"{}", now), [b"s"]) != ""


def test_github_is_not_believed_by_its_sha1() -> None:
    """GitHub sends it for old receivers; it is not to be used."""
    sha1 = hmac.new(b"It's a Secret to Everybody", b"Hello, World!", hashlib.sha1).hexdigest()
    for headers in ({"x-hub-signature": f"sha1={sha1}"}, {"x-hub-signature-256": f"sha1={sha1}"}):
        assert verify("github", Request(headers, b"Hello, World!", 0), [b"It's a Secret to Everybody"]) != ""


@pytest.mark.parametrize(
    "header", ["x-signature-256", "x-hub-signature-256", "x-shopify-hmac-sha256", "linear-signature", "x-gitea-signature"]
)
def test_hmac_sha256_is_read_in_hex_and_base64_wherever_a_known_sender_puts_it(header: str) -> None:
    """One scheme for all who sign the body alone: they differ in the name of the header and in how the digest is written."""
    digest = hmac.new(b"secret", b"body", hashlib.sha256).digest()
    for written in (digest.hex(), f"sha256={digest.hex()}", digest.hex().upper(), base64.b64encode(digest).decode()):
        assert verify("hmac-sha256", Request({header: written}, b"body", 0), [b"secret"]) == ""
        assert verify("hmac-sha256", Request({header: written}, b"bodi", 0), [b"secret"]) != ""


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer a token"},
        {"authorization": "bearer  a token "},
        {"x-gitlab-token": "a token"},
        {"x-telegram-bot-api-secret-token": "a token"},
    ],
)
def test_a_token_is_compared_as_it_is(headers: dict[str, str]) -> None:
    """For senders that sign nothing; the token is all there is."""
    assert verify("token", Request(headers, b"", 0), [b"a token"]) == ""
    assert verify("token", Request(headers, b"", 0), [b"a toke"]) == "its token does not match"
    assert verify("token", Request(headers, b"", 0), [b"old", b"a token"]) == ""


def test_none_lets_anybody_in() -> None:
    """It is written in words, and said at start."""
    assert verify("none", Request({}, b"", 0), []) == ""


@given(
    scheme=st.sampled_from(["standard", "github", "stripe", "slack", "hmac-sha256", "token"]),
    values=st.lists(st.text(max_size=60), min_size=6, max_size=6),
    body=st.binary(max_size=80),
)
def test_no_header_that_a_stranger_may_write_does_more_than_be_refused(scheme: str, values: list[str], body: bytes) -> None:
    """An exception would be a 500, and a line in the log for each request of whoever wants to fill it."""
    names = ["webhook-id", "webhook-signature", "x-hub-signature-256", "stripe-signature", "x-slack-signature", "authorization"]
    headers = {
        **dict(zip(names, values, strict=True)),
        "webhook-timestamp": "1000",
        "x-slack-request-timestamp": "1000",
        "x-signature": values[0],
    }
    secret = STANDARD_SECRET.encode() if scheme == "standard" else b"a secret that nobody knows"

    assert verify(scheme, Request(headers, body, 1000), [secret]) != ""  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["github", "standard"])
def test_a_short_secret_is_said_to_be_weak(scheme: str) -> None:
    """It can be guessed from one delivery that was listened to, and nobody notices."""
    short = b"whsec_" + base64.b64encode(b"short") if scheme == "standard" else b"short"

    assert "5 bytes" in problem_with(scheme, short)  # type: ignore[arg-type]
    assert problem_with(scheme, base64.b64encode(b"x" * 32)) == ""  # type: ignore[arg-type]
