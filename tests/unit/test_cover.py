"""The cover of FAAS_EVENTS: reduced by containment, never widened, and in words where one stream cannot hold two subjects."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas import subjects
from faas.bus.cover import borrowed_subjects, cover, durable_subjects, filters, kept, left
from faas.bus.schedules import is_due
from faas.model import FunctionSpec
from faas.triggers import Trigger

TOKENS = st.sampled_from(["a", "b", "*"])
SUBJECTS = st.builds(
    lambda first, rest, end: ".".join([first, *rest, *end]),
    st.sampled_from(["a", "b"]),
    st.lists(TOKENS, max_size=3),
    st.sampled_from([[], [">"]]),
)


def a_function(name: str, *triggers: str, delivery: str = "at-least-once") -> FunctionSpec:
    return FunctionSpec(name=name, triggers=tuple(Trigger(subject=subject, delivery=delivery) for subject in triggers))  # type: ignore[arg-type]


def test_subjects_are_reduced_by_containment() -> None:
    """Two subjects of one stream may not overlap (10052), and the wider of two that do covers both."""
    covered = cover([a_function("one", "images.*.uploaded", "images.cat.uploaded"), a_function("two", "images.>")])

    assert covered.subjects == ["images.>", "faas.submit.default.one", "faas.submit.default.two"]
    assert covered.conflicts == {}


def test_at_most_once_subjects_are_not_stored() -> None:
    """A core request on a stored subject would be answered by the stream's PubAck."""
    assert cover([a_function("one", "fast.in", delivery="at-most-once")]).subjects == ["faas.submit.default.one"]


def test_of_two_subjects_that_overlap_in_part_the_later_function_is_invalid() -> None:
    """The sentence names both functions and the ways out: its author reads nothing else."""
    covered = cover([a_function("first", "a.*.c"), a_function("second", "a.b.*"), a_function("third", "b.c")])
    sentence = covered.conflicts[("default", "second")]

    assert covered.subjects == ["a.*.c", "b.c", "faas.submit.default.first", "faas.submit.default.third"]
    assert "a.b.*" in sentence
    assert "of the function first" in sentence
    assert "at-most-once" in sentence
    assert 'stream = "..."' in sentence


def test_two_triggers_of_one_function_that_overlap_in_part_are_its_own_fault() -> None:
    """The other function does not exist; the sentence must not look for it."""
    assert "of this function" in cover([a_function("one", "a.*.c", "a.b.*")]).conflicts[("default", "one")]


def test_a_subject_that_the_server_would_refuse_is_invalid_before_it_is_asked() -> None:
    """One bad subject in an update of the stream would keep every other function from its events."""
    covered = cover([a_function("one", "*.created"), a_function("two", "ok.created")])

    assert "first token" in covered.conflicts[("default", "one")]
    assert covered.subjects == ["ok.created", "faas.submit.default.two"]


def test_what_the_stream_has_stays_in_it() -> None:
    """Another node may use it: until the registry is on the bus, a node only adds."""
    present = ["old.subject", "faas.submit.default.old"]

    assert set(cover([a_function("new", "new.subject")], present).subjects) == {*present, "new.subject", "faas.submit.default.new"}


def test_a_subject_left_from_a_changed_trigger_makes_way() -> None:
    """Else the author's edit from a.*.c to a.b.* would be refused because of his own old trigger."""
    assert kept(["a.*.c", "b.c"], ["a.b.*"], []) == ["b.c"]


def test_a_subject_that_a_function_elsewhere_uses_does_not_make_way() -> None:
    """Its events would be lost without a word."""
    assert kept(["a.*.c"], ["a.b.*"], ["a.x.c"]) == ["a.*.c"]
    assert "of a function elsewhere" in cover([a_function("one", "a.b.*")], ["a.*.c"]).conflicts[("default", "one")]


def test_a_consumer_takes_the_triggers_and_the_submissions_of_its_function() -> None:
    """Two of its triggers that overlap share one consumer (10138 otherwise)."""
    spec = a_function("one", "images.>", "images.cat")

    assert filters(spec) == ["faas.due.default.one", "faas.submit.default.one", "images.>"]


@given(st.lists(st.lists(SUBJECTS, max_size=2), max_size=4))
def test_the_cover_matches_what_the_triggers_match_and_no_two_of_it_overlap(triggers: list[list[str]]) -> None:
    """What is due comes from another stream. Not wider: other people's requests would be answered. Not narrower: events would be lost. Overlaps: the server refuses them all."""
    specs = [a_function(f"f{n}", *own) for n, own in enumerate(triggers)]
    covered = cover(specs)
    valid = {
        subject for spec in specs if ("default", spec.name) not in covered.conflicts for subject in filters(spec) if not is_due(subject)
    }

    assert set(covered.subjects) <= valid
    assert all(any(subjects.contains(wide, subject) for wide in covered.subjects) for subject in valid)
    assert not any(subjects.overlaps(a, b) for n, a in enumerate(covered.subjects) for b in covered.subjects[:n])


@pytest.mark.parametrize(
    ("present", "leaving", "needed", "stays"),
    [
        (["a", "b"], ["a"], ["b"], ["b"]),
        (["a", "b"], ["a"], ["a", "b"], ["a", "b"]),
        (["a.>"], ["a.>"], ["a.b", "a.*.c"], ["a.*.c", "a.b"]),
        (["a.>"], ["a.b"], [], ["a.>"]),
        (["a", "elsewhere"], ["a"], [], ["elsewhere"]),
        (["a.*"], ["a.*"], ["a.>"], ["a.*"]),
    ],
)
def test_what_only_withdrawn_functions_took_is_taken_no_more(
    present: list[str], leaving: list[str], needed: list[str], stays: list[str]
) -> None:
    """Nothing acknowledges an event that no function will run; what another one needs of a wider subject stays."""
    assert sorted(left(present, leaving, needed)) == stays


def test_subjects_from_a_stream_of_ones_own_are_not_covered() -> None:
    """They would be captured twice, which the server refuses."""
    one = a_function("one", "a.b")
    own = msgspec.structs.replace(
        one, triggers=(Trigger(subject="c.d", stream="ORDERS"), Trigger(subject="c.>", stream="ORDERS"), *one.triggers)
    )

    assert durable_subjects(own) == ["a.b"]
    assert borrowed_subjects(own) == {"ORDERS": ["c.>"]}
    assert cover([own]).subjects == ["a.b", "faas.submit.default.one"]
