"""Where an answer may go: anybody names the subject, and a node may publish where its callers may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.subjects import REPLY_LIMIT, problem_with_reply


@pytest.mark.parametrize("subject", ["_INBOX.a.b", "a", "orders.done", "faasx.a", "a.faas", "ä.b", "a$b", "x" * REPLY_LIMIT])
def test_an_answer_goes_where_anybody_may_publish(subject: str) -> None:
    """Inboxes above all, and subjects of the caller's own."""
    assert problem_with_reply(subject) == ""


@pytest.mark.parametrize("subject", ["faas", "faas.usage.a.b", "$JS.API.STREAM.DELETE.FAAS_USAGE", "$KV.FAAS_REGISTRY.a.b", "$"])
def test_an_answer_never_goes_to_the_runtime_or_to_nats(subject: str) -> None:
    """A caller would write there with the rights of a node."""
    assert "belong to the runtime" in problem_with_reply(subject)


@given(st.text(st.sampled_from("fas.*> $_\n\x7f"), max_size=12))
def test_what_may_be_answered_is_a_subject_without_wildcards_outside_of_faas(subject: str) -> None:
    """Said once more, part by part."""
    tokens = subject.split(".")
    allowed = all(tokens) and not set(subject) & set("*> \n\x7f") and tokens[0] != "faas" and not subject.startswith("$")

    assert (problem_with_reply(subject) == "") == allowed


def test_a_subject_that_is_too_long_is_none() -> None:
    """The server cuts the connection at a line that is longer than it takes."""
    assert problem_with_reply("x" * (REPLY_LIMIT + 1))
