"""What a verified delivery is taken for: its id, kind and subject, in the shapes that senders document, and in shapes that they do not."""

from __future__ import annotations

import json
from urllib.parse import quote_plus

import pytest
from deliveries import GITHUB_PING, GITHUB_PULL_REQUEST, SLACK_CHALLENGE, SLACK_COMMAND, SLACK_EVENT, STRIPE_EVENT
from hypothesis import given
from hypothesis import strategies as st

from faas.gateway.senders import FORM, ID_HEADERS, Delivery, Malformed, read

JSON = {"content-type": "application/json"}
GITHUB = {**JSON, "x-github-delivery": "guid", "x-github-event": "pull_request"}
STAMPED = {**JSON, "x-slack-request-timestamp": "1531420618"}


def told(delivery: Delivery) -> tuple[str, str, str]:
    return delivery.id, delivery.type, delivery.subject


def test_each_sender_says_it_in_its_own_way() -> None:
    """Payloads of their documentation."""
    form = {**STAMPED, "content-type": FORM}

    assert told(read("github", GITHUB, GITHUB_PULL_REQUEST)) == ("guid", "com.github.pull_request.opened", "Codertocat/Hello-World")
    assert told(read("stripe", JSON, STRIPE_EVENT)) == ("evt_123", "com.stripe.invoiceitem.created", "ii_123")
    assert told(read("slack", STAMPED, SLACK_EVENT)) == ("Ev123ABC456", "com.slack.message", "T123ABC456")
    assert read("slack", form, SLACK_COMMAND).type == "com.slack.slash_command"
    assert told(read("standard", {**JSON, "webhook-id": "msg_1"}, b'{"type":"user.created"}')) == ("msg_1", "user.created", "")


def test_an_event_of_github_without_an_action_or_a_repository_has_neither() -> None:
    """A push has no action, an organization's event no repository."""
    headers = {**GITHUB, "x-github-event": "push"}

    assert told(read("github", headers, b'{"ref":"refs/heads/main"}')) == ("guid", "com.github.push", "")
    assert told(read("github", headers, b'{"action":null,"repository":null}')) == ("guid", "com.github.push", "")


def test_what_a_sender_signed_in_a_shape_that_we_do_not_know_is_still_its_event() -> None:
    """Senders change their payloads; 400 would have them give up on what a function may well understand."""
    assert told(read("github", GITHUB, b'{"action":7,"repository":"x"}')) == ("guid", "com.github.pull_request", "")
    assert read("slack", STAMPED, b'{"type":"event_callback","event":"x"}').type == "com.slack.event"


def test_a_thin_event_of_stripe_has_no_object_in_it() -> None:
    """Its second kind of events names the object elsewhere."""
    body = b'{"id":"evt_test_65","object":"v2.core.event","type":"v1.billing.meter.error_report_triggered","related_object":{"id":"mtr_1"}}'

    assert told(read("stripe", JSON, body)) == ("evt_test_65", "com.stripe.v1.billing.meter.error_report_triggered", "")


def test_a_click_in_slack_comes_as_json_in_a_form() -> None:
    """One field, `payload`; it has no id, so its digest is one: the same request is the same event, another time another."""
    clicked = json.dumps({"type": "block_actions", "team": {"id": "T1"}, "actions": [{"value": "a b&c"}]})
    body = f"payload={quote_plus(clicked)}".encode()
    headers = {**STAMPED, "content-type": FORM}
    delivery = read("slack", headers, body)

    assert (delivery.type, delivery.content_type, json.loads(delivery.data)) == (
        "com.slack.block_actions",
        "application/json",
        json.loads(clicked),
    )
    assert read("slack", headers, body).id == delivery.id
    assert read("slack", {**headers, "x-slack-request-timestamp": "1531420619"}, body).id != delivery.id


def test_what_a_sender_asks_before_it_sends_is_answered() -> None:
    """And only in the form that it asks for: a challenge is no way to have this node say anything."""
    challenge = read("slack", STAMPED, SLACK_CHALLENGE).answer
    ping = read("github", {**GITHUB, "x-github-event": "ping"}, GITHUB_PING).answer

    assert challenge is not None
    assert (challenge.body, challenge.content_type) == ("3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P", "text/plain")
    assert ping is not None
    assert json.loads(ping.body) == {"event": "guid", "invocations": []}
    for odd in ("", "<script>alert(1)</script> x", "a\r\nb", "x" * 1025):
        assert read("slack", STAMPED, json.dumps({"type": "url_verification", "challenge": odd}).encode()).answer is None


@pytest.mark.parametrize("header", ID_HEADERS)
def test_an_id_is_found_where_known_senders_put_it(header: str) -> None:
    """It is what makes two deliveries one event."""
    assert read("hmac-sha256", {**JSON, header: "7"}, b"{}").id == "7"


def test_without_an_id_each_delivery_is_an_event_of_its_own() -> None:
    """Two bodies may be alike and mean two things: nothing is dropped on a guess."""
    assert read("token", JSON, b"{}").id != read("token", JSON, b"{}").id


@pytest.mark.parametrize("id", ["", " ", "a b", "a\tb", "é", "x" * 256, "a\x7f"])
def test_an_id_is_plain_text(id: str) -> None:
    """It goes into a header of the bus and comes back in an answer."""
    with pytest.raises(Malformed):
        read("standard", {**JSON, "webhook-id": id}, b"{}")


def test_a_kind_that_no_event_can_have_is_left_out() -> None:
    """The type is the sender's word; a line break or a page of text in it is none."""
    for odd in ("a\nb", "x" * 256, "\udcff"):
        assert read("none", {**JSON, "x-event-type": odd}, b"{}").type == "faas.webhook"


@given(
    scheme=st.sampled_from(["standard", "github", "stripe", "slack", "hmac-sha256", "token", "none"]),
    body=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["id", "type", "data", "object", "event", "repository", "challenge", "event_id"]), inner, max_size=4
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    content_type=st.sampled_from(["application/json", FORM, "", "text/plain"]),
)
def test_whatever_is_in_a_body_gives_a_delivery_or_a_sentence(scheme: str, body: bytes, content_type: str) -> None:
    """Whoever knows a secret is not thereby careful."""
    headers = {"content-type": content_type, "webhook-id": "msg", "x-github-delivery": "guid", "x-github-event": "push"}
    try:
        delivery = read(scheme, headers, body)  # type: ignore[arg-type]
    except Malformed:
        return

    assert delivery.id
    assert delivery.type
    assert delivery.type.isprintable()
