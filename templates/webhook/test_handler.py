"""The handler without a node: a plain function, called with the event that a delivery is."""

import pytest
from handler import handle

import faas

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


def delivery(kind: str) -> faas.Event:
    return faas.Event(
        id="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        source="/hooks/default/FUNCTION",
        type=f"com.github.{kind}",
        subject="octocat/Hello-World",
        time=None,
        datacontenttype="application/json",
        dataschema="",
        extensions={},
        data={"pull_request": {"title": "Amazing new feature", "html_url": "https://github.com/octocat/Hello-World/pull/1347"}},
    )


def test_a_new_pull_request_is_told() -> None:
    assert handle(delivery("pull_request.opened"), CONTEXT)["title"] == "Amazing new feature"


def test_what_nobody_has_to_look_at_is_rejected() -> None:
    with pytest.raises(faas.Reject):
        handle(delivery("star.created"), CONTEXT)
