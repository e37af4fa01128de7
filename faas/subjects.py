"""Every NATS subject, stream and bucket name, and how subjects contain one another. Pure text; the one place where these names are spelled."""

import re

EVENTS = "FAAS_EVENTS"
OUTCOMES = "FAAS_OUTCOMES"
USAGE = "FAAS_USAGE"
DEAD = "FAAS_DEAD"
LOGS = "FAAS_LOGS"
SCHEDULES = "FAAS_SCHEDULES"
CANCELLED = "FAAS_CANCELLED"
"""A key-value bucket: its stream is KV_FAAS_CANCELLED."""
PAYLOADS = "FAAS_PAYLOADS"
"""An object store bucket; its stream is `OBJ_` and this name."""

REGISTRY = "FAAS_REGISTRY"
NODES = "FAAS_NODES"
BUNDLES = "FAAS_BUNDLES"
"""Buckets: the first two of keys and values, the third an object store."""

SERVICE = "faas"
"""Name of the NATS micro service whose endpoints are the functions."""

RUNTIME_PREFIX = "faas."
"""Subjects that belong to the runtime: no trigger and no output may lie in it."""

SCHEDULE_PREFIX = "faas.schedule."

SUBJECT_LIMIT = 255
"""Characters of a trigger's subject: a server takes 4,096 bytes in one protocol line, which holds more than the subject."""

REPLY_LIMIT = 1000
"""Characters of a subject for answers."""


def invoke(tenant: str, function: str) -> str:
    return f"faas.invoke.{tenant}.{function}"


def submit(tenant: str, function: str) -> str:
    return f"faas.submit.{tenant}.{function}"


def hook(tenant: str, webhook: str) -> str:
    return f"faas.hook.{tenant}.{webhook}"


def outcome(tenant: str, function: str, invocation_id: str) -> str:
    return f"faas.outcome.{tenant}.{function}.{invocation_id}"


def attempt(tenant: str, function: str, invocation_id: str) -> str:
    return f"faas.attempt.{tenant}.{function}.{invocation_id}"


def retry(tenant: str, function: str, invocation_id: str) -> str:
    return f"faas.retry.{tenant}.{function}.{invocation_id}"


def schedule(tenant: str, function: str, number: int) -> str:
    """Where a schedule waits; they are numbered in the order in which the function declares them, from 0."""
    return f"{SCHEDULE_PREFIX}{tenant}.{function}.{number}"


def due(tenant: str, function: str) -> str:
    return f"faas.due.{tenant}.{function}"


def usage(tenant: str, function: str) -> str:
    return f"faas.usage.{tenant}.{function}"


def log(tenant: str, function: str, invocation_id: str) -> str:
    return f"faas.log.{tenant}.{function}.{invocation_id}"


def cancel(tenant: str, function: str, invocation_id: str) -> str:
    return f"faas.cancel.{tenant}.{function}.{invocation_id}"


CHUNKS = "faas.chunk."


def chunk(tenant: str, function: str, invocation_id: str) -> str:
    """Where the items of a durable invocation go whose readers come and go; core NATS, stored nowhere."""
    return f"{CHUNKS}{tenant}.{function}.{invocation_id}"


def dead(tenant: str, function: str) -> str:
    return f"faas.dead.{tenant}.{function}"


def node(name: str, question: str) -> str:
    return f"faas.node.{name}.{question}"


JANITOR = "faas.janitor"
"""Core NATS, stored nowhere: the node that has just swept FAAS_EVENTS says so, and the others wait their pace anew."""


HOLDS = "faas.node.any.holds"
"""A question to all nodes, an invocation's id: the one that has it in its hands says what it knows."""
ANSWERS = "faas.node.any.answers"
"""A question to all nodes, where the answer to a synchronous call goes: the one that will answer it says as which invocation."""
GONE = "faas.node.any.gone"
"""Said to all nodes: nobody waits there any more for the answer to a synchronous call."""


def problem_with(subject: str) -> str | None:
    """Why this is no subject that a trigger may have, in words, or None."""
    if len(subject) > SUBJECT_LIMIT:
        return f"longer than {SUBJECT_LIMIT} characters"
    tokens = subject.split(".")
    if not all(tokens) or not subject.isprintable() or any(ch.isspace() for ch in subject):
        return "not a NATS subject; write tokens joined by dots, like images.*.uploaded"
    for index, token in enumerate(tokens):
        if ("*" in token and token != "*") or (">" in token and (token != ">" or index != len(tokens) - 1)):
            return "a wildcard stands alone in its token, and > only at the end, like images.*.uploaded or images.>"
    if tokens[0] in ("*", ">"):
        return "the first token may not be a wildcard: it would cover the runtime's own subjects"
    if tokens[0] == "faas" or tokens[0].startswith("$") or tokens[0].startswith("_INBOX") or tokens[0] == "_R_":
        return "subjects that begin with faas, $, _INBOX or _R_ belong to the runtime and to NATS"
    return None


NODE_INBOXES = "_INBOX_faas_node."
ITEMS = ".items"
"""What an inbox of a node ends with that takes the items of a call."""


def node_inbox(node: str) -> str:
    """What the inboxes of a node begin with; no tenant and no key has a name like it."""
    return f"{NODE_INBOXES}{node}"


ABROAD = "_R_."
"""What a server calls the inbox of whoever asks from another account; no client has one of its own there."""


def waits_for_the_bus(subject: str) -> bool:
    """Whether a node waits there for what the bus answers it, or a server for the answer to somebody. Others may hear of these; no event may name one."""
    return subject.startswith(ABROAD) or (subject.startswith(NODE_INBOXES) and not subject.endswith(ITEMS))


_MAY_BE_ANSWERED = re.compile(r"(?!\$|faas(?:\.|\Z))[^*> .]+(?:\.[^*> .]+)*")


def problem_with_reply(subject: str) -> str:
    """Why no answer may go here, whoever named it, or "": a node may publish where its callers may not, and lends that to nobody."""
    if len(subject) <= REPLY_LIMIT and subject.isprintable() and _MAY_BE_ANSWERED.fullmatch(subject):
        return ""  # one match, since each call asks twice
    if subject.startswith("$") or subject.partition(".")[0] == "faas":
        return "subjects that begin with faas or $ belong to the runtime and to NATS"
    return "it is no subject that may be published to"


def is_inbox(subject: str) -> bool:
    """Whether it is one of the subjects made up for answers: _INBOX, or that and whose, by clients; _R_, by a server for who asks from another account."""
    return subject.startswith(("_INBOX", ABROAD))


def contains(wide: str, narrow: str) -> bool:
    """Whether every subject that `narrow` matches is matched by `wide`; both may hold wildcards."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for index, token in enumerate(wide_tokens):
        if token == ">":
            return len(narrow_tokens) > index
        if index >= len(narrow_tokens) or narrow_tokens[index] == ">":
            return False
        if token != "*" and token != narrow_tokens[index]:
            return False
    return len(wide_tokens) == len(narrow_tokens)


def overlaps(one: str, other: str) -> bool:
    """Whether some subject is matched by both."""
    a, b = one.split("."), other.split(".")
    for x, y in zip(a, b, strict=False):
        if x == ">" or y == ">":
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(a) == len(b)


def reduce_by_containment(subjects: list[str]) -> list[str]:
    """The fewest of these subjects that still match the same, in first-seen order; never a wider one."""
    unique = list(dict.fromkeys(subjects))
    return [s for s in unique if not any(o != s and contains(o, s) for o in unique)]
