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
    """The subjects of a function's at-least-once triggers, reduced by containment."""
    return subjects.reduce_by_containment([t.subject for t in spec.triggers if t.delivery == "at-least-once"])


def filters(spec: FunctionSpec) -> list[str]:
    """What the function's consumer takes: its durable subjects and its submissions."""
    return sorted([*durable_subjects(spec), subjects.submit(spec.tenant, spec.name)])


def cover(specs: Sequence[FunctionSpec], present: Iterable[str] = ()) -> Cover:
    """The subjects for these functions, in the order of their registration; `present` are those that the stream has and keeps."""
    owners: list[tuple[str, str]] = [(subject, "") for subject in present if not subject.startswith(subjects.RUNTIME_PREFIX)]
    result = Cover()
    kept: list[str] = [subject for subject, _ in owners]
    submits = [subject for subject in present if subject.startswith(subjects.RUNTIME_PREFIX)]
    for spec in specs:
        own = durable_subjects(spec)
        conflict = _conflict(own, owners)
        if conflict is not None:
            result.conflicts[(spec.tenant, spec.name)] = conflict
            continue
        owners += [(subject, spec.name) for subject in own]
        kept += own
        submits.append(subjects.submit(spec.tenant, spec.name))
    result.subjects = subjects.reduce_by_containment(kept) + list(dict.fromkeys(submits))
    return result


def _conflict(own: list[str], owners: list[tuple[str, str]]) -> str | None:
    for index, subject in enumerate(own):
        others = [*owners, *((other, "") for other in own[:index])]
        for other, owner in others:
            partly = subjects.overlaps(subject, other) and not subjects.contains(subject, other) and not subjects.contains(other, subject)
            if partly:
                whose = f"of the function {owner}" if owner else "that the stream or this function has already"
                return (
                    f"the subject {subject} overlaps in part with {other} {whose}, and one stream cannot hold both; "
                    'make one contain the other, or set delivery = "at-most-once"'
                )
    return None
