"""Which subjects FAAS_EVENTS takes: those of the triggers, reduced by containment and never widened. Pure.

A wider cover would also answer other people's requests with a PubAck; two that overlap in part are refused by the server
(10052), so the one registered later is invalid, and says with whom and what can be done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from faas import subjects
from faas.model import FunctionSpec


@dataclass(slots=True)
class Cover:
    """`subjects` of the stream, and for each function that cannot be covered one sentence."""

    subjects: list[str] = field(default_factory=list)
    conflicts: dict[tuple[str, str], str] = field(default_factory=dict)


def durable_subjects(spec: FunctionSpec) -> list[str]:
    """The subjects of a function's at-least-once triggers that FAAS_EVENTS takes, reduced by containment."""
    return subjects.reduce_by_containment(
        [t.subject for t in spec.triggers if t.subject and t.delivery == "at-least-once" and not t.stream]
    )


def hook_subjects(spec: FunctionSpec) -> list[str]:
    """Where the function's webhooks are published: the runtime's own subjects, each without a wildcard, so that they overlap with nothing."""
    return list(dict.fromkeys(subjects.hook(spec.tenant, t.webhook) for t in spec.triggers if t.webhook))


def borrowed_subjects(spec: FunctionSpec) -> dict[str, list[str]]:
    """The subjects that a function takes from streams of the user's own, by stream, reduced by containment."""
    found: dict[str, list[str]] = {}
    for trigger in spec.triggers:
        if trigger.stream:
            found.setdefault(trigger.stream, []).append(trigger.subject)
    return {stream: sorted(subjects.reduce_by_containment(own)) for stream, own in found.items()}


def filters(spec: FunctionSpec) -> list[str]:
    """What the function's consumer takes: its durable subjects and webhooks, its submissions, and what has waited elsewhere and is due."""
    return sorted(
        [*durable_subjects(spec), *hook_subjects(spec), subjects.submit(spec.tenant, spec.name), subjects.due(spec.tenant, spec.name)]
    )


def kept(present: Iterable[str], wanted: Iterable[str], in_use: Iterable[str]) -> list[str]:
    """The subjects of the stream that stay: all of them, since another node may use them, but those that overlap in part with what is
    `wanted` now and that no other function's consumer has `in_use`: they are left from a trigger that has been changed."""
    wanted, in_use = list(wanted), list(in_use)
    return [
        subject
        for subject in present
        if subject.startswith(subjects.RUNTIME_PREFIX)
        or not any(partly(subject, other) for other in wanted)
        or any(subjects.overlaps(subject, other) for other in in_use)
    ]


def cover(specs: Sequence[FunctionSpec], present: Iterable[str] = ()) -> Cover:
    """The subjects for these functions, in the order of their registration; `present` are those that the stream has and keeps."""
    present = list(present)
    submits = [subject for subject in present if subject.startswith(subjects.RUNTIME_PREFIX)]
    owners: list[tuple[str, str]] = [(subject, "") for subject in present if not subject.startswith(subjects.RUNTIME_PREFIX)]
    result = Cover()
    for spec in specs:
        own = durable_subjects(spec)
        conflict = _conflict(own, owners)
        if conflict is not None:
            result.conflicts[(spec.tenant, spec.name)] = conflict
            continue
        owners += [(subject, spec.name if spec.tenant == "default" else f"{spec.tenant}/{spec.name}") for subject in own]
        submits += [subjects.submit(spec.tenant, spec.name), *hook_subjects(spec)]
    result.subjects = subjects.reduce_by_containment([subject for subject, _ in owners]) + list(dict.fromkeys(submits))
    return result


def left(present: Iterable[str], leaving: Iterable[str], needed: Iterable[str]) -> list[str]:
    """The subjects of the stream without those that only withdrawn functions take: `leaving` are their consumers' filters, `needed` all others.

    A subject that is wider than what is still needed of it is narrowed to that.
    """
    leaving, needed = list(leaving), list(needed)
    found: list[str] = []
    for subject in present:
        if not any(subjects.contains(gone, subject) for gone in leaving) or any(subjects.contains(other, subject) for other in needed):
            found.append(subject)
        else:
            found += [other for other in needed if subjects.contains(subject, other)]
    return subjects.reduce_by_containment(found)


def partly(one: str, other: str) -> bool:
    """Whether two subjects overlap and neither contains the other: one stream cannot hold both."""
    return subjects.overlaps(one, other) and not subjects.contains(one, other) and not subjects.contains(other, one)


def _conflict(own: list[str], owners: list[tuple[str, str]]) -> str | None:
    for index, subject in enumerate(own):
        if problem := subjects.problem_with(subject):
            return f"{subject}: {problem}"
        for other, owner in [*owners, *((other, "this function") for other in own[:index])]:
            if partly(subject, other):
                whose = (
                    "of this function" if owner == "this function" else f"of the function {owner}" if owner else "of a function elsewhere"
                )
                return (
                    f"the subject {subject} overlaps in part with {other} {whose}, and one stream cannot hold both; make one contain the "
                    'other, set delivery = "at-most-once", or take it from a stream of your own, stream = "..."'
                )
    return None
