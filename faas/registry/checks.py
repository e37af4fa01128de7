"""The rules that a function's declaration follows, as far as types cannot say them: bounds, names, subjects, and keys that are not built yet.

Pure: knows no disk. A rule that is broken is a `KeyInvalid`, whose key the reader finds in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import get_args

from faas import subjects
from faas.config import problem_with_secret
from faas.cron import cron
from faas.model import NAME_PATTERN, FunctionSpec, RuntimeProfile
from faas.security.tenants import Tenants
from faas.strict import KeyInvalid
from faas.triggers import Trigger, Verify
from faas.units import format_size

TAGS_LIMIT = 20
TAGS_BYTES = 1024
TRIGGERS_LIMIT = 100
PAYLOAD_BYTES = 8 * 2**10
"""Of all schedules of a function: the registry keeps them with each version, and a version in one message."""
MOUNTS_LIMIT = 20
DEPENDENCIES_LIMIT = 100
SECRETS_LIMIT = 20
ENV_BYTES = 64 * 2**10
"""Of all names and values; a process takes 128 KiB in one of them, and the environment goes to every worker as it loads."""
REQUIREMENT_CHARACTERS = 500
WEIGHTS = (0.01, 100)
"""Of `scale.weight`: beyond, one start of a light function would hold it back for longer than most events may wait."""

NOT_YET: Mapping[str, tuple[str, ...]] = {
    "": ("policy", "budget", "batch", "dev"),
    "gpu": ("memory", "kinds", "share"),
    "scale": ("concurrency",),
}
"""Keys of the contract whose effect is not built; refused, so that nobody relies on them."""
NO_EFFECT: Mapping[str, object] = {"gpu.share": "shared", "scale.concurrency": 1}
"""Of these, values that ask for nothing beyond what is there."""

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXTRAS = re.compile(r"\[[A-Za-z0-9._, -]*\]")
_VERSIONS = re.compile(r"(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9.*+!_-]*")
_MARKER = re.compile(r"[A-Za-z0-9_.'\"<>=!~(), +*-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TARGET = re.compile(r"[a-z][a-z0-9_-]{0,62}")

Rule = tuple[bool, str, str]
"""(whether it holds, key, what is wrong where it does not)"""


def supported(table: Mapping[str, object]) -> dict[str, object]:
    """The table without the keys of the contract that are not built and ask for nothing. Raises KeyInvalid for one that asks."""
    kept = dict(table)
    for section, keys in NOT_YET.items():
        inside = kept if not section else table.get(section)
        for index, part in enumerate(inside if isinstance(inside, list) else [inside]):
            if not isinstance(part, Mapping):
                continue
            where = f"{section}[{index}]" if isinstance(inside, list) else section
            for key in keys:
                if key in part and not _asks_for_nothing(f"{section}.{key}", part[key]):
                    raise KeyInvalid(f"{where}.{key}".lstrip("."), "not supported yet; remove it")
            if section and isinstance(inside, Mapping):
                kept[section] = {key: value for key, value in part.items() if key not in keys}
    return kept


def _asks_for_nothing(path: str, value: object) -> bool:
    return path in NO_EFFECT and type(value) is type(NO_EFFECT[path]) and value == NO_EFFECT[path]


def check(spec: FunctionSpec, profile: RuntimeProfile, *, table: Mapping[str, object], tenants: Tenants) -> None:
    """Raises KeyInvalid for the first rule that is broken. `table` is the declaration as written: defaults are capped, and not refused."""
    limits = table.get("limits", {})
    for rules in (
        _names(spec),
        _bounds(spec),
        _profile_bounds(spec, profile, limits if isinstance(limits, Mapping) else {}),
        _triggers(spec),
        _output(spec),
        _dependencies(spec),
        _env(spec),
        _secrets(spec),
        _mounts(spec),
    ):
        for holds, key, problem in rules:
            if not holds:
                raise KeyInvalid(key, problem)
    if (beyond := tenants.problem_of(spec)) is not None:
        raise KeyInvalid(*beyond)


def _names(spec: FunctionSpec) -> Iterator[Rule]:
    for key, name in (("name", spec.name), ("tenant", spec.tenant)):
        holds = re.fullmatch(NAME_PATTERN, name) is not None
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        like = f', like {key} = "{near}"' if re.fullmatch(NAME_PATTERN, near) else ""
        yield holds, key, f"{name[:80]!r} is no name; begin with a-z, then a-z, 0-9 and -, at most 63{like}"


def _bounds(spec: FunctionSpec) -> Iterator[Rule]:
    limits, retry, scale = spec.limits, spec.retry, spec.scale
    yield len(spec.tags) <= TAGS_LIMIT, "tags", f"{len(spec.tags)} tags; {TAGS_LIMIT} at most"
    yield len(str(dict(spec.tags)).encode()) <= TAGS_BYTES, "tags", f"more than {TAGS_BYTES} bytes; they go into every usage record"
    yield spec.gpu.count == 0 or spec.gpu.optional, "gpu.count", "GPUs are not supported yet; with optional = true it runs on the CPU"
    yield 0 <= spec.gpu.count <= 64, "gpu.count", "must be between 0 and 64"
    yield 0.001 <= limits.timeout_s <= 7 * 86_400, "limits.timeout", "must be between 1ms and 7d"
    yield 0.001 <= limits.load_timeout_s <= 86_400, "limits.load_timeout", "must be between 1ms and 1d"
    yield 0.001 <= limits.queue_timeout_s <= 7 * 86_400, "limits.queue_timeout", "must be between 1ms and 7d"
    yield limits.memory_bytes >= 16 * 2**20, "limits.memory", "must be at least 16MiB"
    yield limits.cpus > 0, "limits.cpus", "must be above 0"
    yield limits.pids >= 1, "limits.pids", "must be at least 1"
    yield 1 <= limits.payload_bytes <= 2**30, "limits.payload", "must be between 1B and 1GiB"
    yield 1 <= retry.max_attempts <= 100, "retry.max_attempts", "must be between 1 and 100"
    yield 0 <= retry.backoff_s <= 86_400, "retry.backoff", "must be at most 1d"
    yield 0 <= retry.max_backoff_s <= 86_400, "retry.max_backoff", "must be at most 1d"
    yield 1 <= scale.max_workers <= 1024, "scale.max_workers", "must be between 1 and 1024"
    yield 0 <= scale.min_warm <= scale.max_workers, "scale.min_warm", "must be between 0 and max_workers"
    yield 0 <= scale.keep_alive_s <= 7 * 86_400, "scale.keep_alive", "must be at most 7d"
    least, most = WEIGHTS
    yield least <= scale.weight <= most, "scale.weight", f"must be between {least:g} and {most:g}; 2 is twice the share of the default, 1"


def _profile_bounds(spec: FunctionSpec, profile: RuntimeProfile, written: Mapping[str, object]) -> Iterator[Rule]:
    limits, bound, of = spec.limits, profile.limits, f"of the profile {profile.name}"
    holds = "memory" not in written or limits.memory_bytes <= bound.memory_bytes
    yield holds, "limits.memory", f"is above the {format_size(bound.memory_bytes)} {of}"
    yield "cpus" not in written or limits.cpus <= bound.cpus, "limits.cpus", f"is above the {bound.cpus:g} {of}"
    yield "pids" not in written or limits.pids <= bound.pids, "limits.pids", f"is above the {bound.pids} {of}"


def _triggers(spec: FunctionSpec) -> Iterator[Rule]:
    yield len(spec.triggers) <= TRIGGERS_LIMIT, "trigger", f"{len(spec.triggers)} triggers; {TRIGGERS_LIMIT} at most, a wildcard takes many"
    hooks: set[str] = set()
    payload_bytes = 0
    for index, trigger in enumerate(spec.triggers):
        key = f"trigger[{index}]"
        if trigger.webhook or trigger.verify is not None or trigger.secret:
            yield from _webhook(key, trigger)
            yield trigger.webhook not in hooks, f"{key}.webhook", f"{trigger.webhook!r} is a trigger of this function already; remove one"
            hooks.add(trigger.webhook)
        elif trigger.schedule or trigger.timezone or trigger.payload is not None:
            yield from _schedule(key, trigger)
            payload_bytes += len(trigger.body)
            too_large = f"is more than the {format_size(PAYLOAD_BYTES)} that all schedules of a function may have; put it into a file beside the handler"
            yield payload_bytes <= PAYLOAD_BYTES, f"{key}.payload", too_large
            too_large = f"is more than the {format_size(spec.limits.payload_bytes)} of limits.payload; every event of it would be rejected"
            yield len(trigger.body) <= spec.limits.payload_bytes, f"{key}.payload", too_large
        else:
            yield from _subject(key, trigger)


def _subject(key: str, trigger: Trigger) -> Iterator[Rule]:
    problem = subjects.problem_with(trigger.subject)
    yield (
        trigger.subject != "",
        f"{key}.subject",
        'is missing; write subject = "images.*.uploaded", webhook = "github" or schedule = "*/5 * * * *"',
    )
    yield problem is None, f"{key}.subject", f"{trigger.subject[:80]!r}: {problem}"
    if trigger.stream:
        key, stream = f"{key}.stream", trigger.stream
        yield (
            trigger.delivery == "at-least-once",
            key,
            'stores events, and delivery = "at-most-once" stores none; leave one of the two out',
        )
        plain = re.fullmatch(r"[A-Za-z0-9_-]{1,255}", stream) is not None
        yield plain, key, f"{stream[:80]!r} is no name of a stream; write it like ORDERS, of letters, digits, - and _"
        own = not stream.startswith(("FAAS_", "KV_", "OBJ_", "MQTT_", "$"))
        yield own, key, f"{stream[:80]!r} belongs to the runtime, or to a bucket; name a stream of your own"


def _webhook(key: str, trigger: Trigger) -> Iterator[Rule]:
    """A webhook has a name that is one token of a subject, says how it is verified, and always by a secret but with "none"."""
    name, verify = trigger.webhook, trigger.verify
    yield name != "", f"{key}.webhook", 'is missing; verify and secret are of a webhook, like webhook = "github"'
    others = {"subject": trigger.subject, "stream": trigger.stream, "schedule": trigger.schedule, "timezone": trigger.timezone}
    for other, given in {**others, "payload": trigger.payload is not None}.items():
        yield not given, f"{key}.{other}", "has no place beside webhook; write a [[trigger]] for each"
    yield trigger.delivery == "at-least-once", f"{key}.delivery", "a webhook is always stored before it is answered; remove it"
    holds = re.fullmatch(NAME_PATTERN, name) is not None
    yield holds, f"{key}.webhook", f"{name[:80]!r} is no name of a webhook; begin with a-z, then a-z, 0-9 and -, at most 63"
    schemes = ", ".join(get_args(Verify))
    yield verify is not None, f"{key}.verify", f"is missing; one of {schemes}, where none lets anybody send"
    if verify == "none":
        yield not trigger.secret, f"{key}.secret", 'has no effect with verify = "none"; leave one of the two out'
        return
    yield trigger.secret != "", f"{key}.secret", f'is missing; name the secret that verify = "{verify}" checks with, like "{name}_secret"'
    problem = problem_with_secret(trigger.secret)
    yield not problem, f"{key}.secret", problem


def _schedule(key: str, trigger: Trigger) -> Iterator[Rule]:
    """A schedule can be due, and its payload is what JSON can hold."""
    given = trigger.schedule != ""
    yield given, f"{key}.schedule", 'is missing; timezone and payload are of a schedule, like schedule = "*/5 * * * *"'
    for other, value in (("subject", trigger.subject), ("stream", trigger.stream)):
        yield not value, f"{key}.{other}", "has no place beside schedule; write a [[trigger]] for each"
    yield trigger.delivery == "at-least-once", f"{key}.delivery", "what a schedule sets off is always stored; remove it"
    for name, schedule, timezone in (("timezone", "* * * * *", trigger.timezone), ("schedule", trigger.schedule, "")):
        problem = ""
        try:
            cron(schedule, timezone)
        except ValueError as error:
            problem = str(error)
        yield not problem, f"{key}.{name}", problem if name == "timezone" else f"{trigger.schedule[:80]!r}: {problem}"
    holds = _is_finite(trigger.payload)
    yield holds, f"{key}.payload", "has inf or nan, which JSON cannot hold; write it as a string"


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def _output(spec: FunctionSpec) -> Iterator[Rule]:
    subject = spec.output.publish
    if subject:
        problem = subjects.problem_with(subject)
        if problem is None and ("*" in subject or ">" in subject):
            problem = "a result goes to one subject; a wildcard is none"
        yield problem is None, "output.publish", f"{subject[:80]!r}: {problem}"


def _dependencies(spec: FunctionSpec) -> Iterator[Rule]:
    yield len(spec.dependencies) <= DEPENDENCIES_LIMIT, "dependencies", f"{len(spec.dependencies)}; {DEPENDENCIES_LIMIT} at most"
    for index, text in enumerate(spec.dependencies):
        problem = f'{text[:80]!r}: write a package and its versions, like "pillow>=11"; no options, addresses or paths'
        yield is_requirement(text), f"dependencies[{index}]", problem


def _env(spec: FunctionSpec) -> Iterator[Rule]:
    for name, value in spec.env.items():
        holds = _VARIABLE.fullmatch(name) is not None
        yield holds, "env", f"{name[:80]!r} is no name of a variable; begin with a letter or _, then letters, digits and _"
        yield "\0" not in value, f"env.{name}", "has a zero character, which no variable can hold"
    size_bytes = sum(len(f"{name}={value}".encode()) for name, value in spec.env.items())
    yield size_bytes <= ENV_BYTES, "env", f"has {format_size(size_bytes)}; {format_size(ENV_BYTES)} at most, put more into a file"


def _secrets(spec: FunctionSpec) -> Iterator[Rule]:
    yield len(spec.secrets) <= SECRETS_LIMIT, "secrets", f"{len(spec.secrets)} secrets; {SECRETS_LIMIT} at most"
    for index, name in enumerate(spec.secrets):
        problem = problem_with_secret(name)
        yield not problem, f"secrets[{index}]", problem
        yield name not in spec.secrets[:index], f"secrets[{index}]", f"{name!r} is there already; name each once"


def _mounts(spec: FunctionSpec) -> Iterator[Rule]:
    yield len(spec.mounts) <= MOUNTS_LIMIT, "mount", f"{len(spec.mounts)} mounts; {MOUNTS_LIMIT} at most"
    targets: set[str] = set()
    for index, mount in enumerate(spec.mounts):
        key, target, source = f"mount[{index}]", mount.target, mount.source
        holds = _TARGET.fullmatch(target) is not None
        yield holds, f"{key}.target", f"{target[:80]!r} is no plain name; begin with a-z, then a-z, 0-9, _ and -, at most 63"
        yield target not in targets, f"{key}.target", f"{target!r} is taken already; give each mount another name"
        plain = source.isprintable() and all(part not in ("", ".", "..") for part in source.removeprefix("/").split("/"))
        yield plain, f"{key}.source", f'{source[:80]!r} is no folder; write it like "assets/model" or "/data/model", without . and ..'
        targets.add(target)


def is_requirement(text: str) -> bool:
    """Whether it is one requirement as packages write theirs: name, extras, versions, marker; no option, no address, no path."""
    if len(text) > REQUIREMENT_CHARACTERS or not text.isprintable() or not text.isascii():
        return False
    wanted, semicolon, marker = text.strip().partition(";")
    name = _PACKAGE.match(wanted)
    if name is None or (semicolon and not _MARKER.fullmatch(marker.strip())):
        return False
    rest = wanted[name.end() :].strip()
    if extras := _EXTRAS.match(rest):
        rest = rest[extras.end() :].strip()
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    return not rest or all(_VERSIONS.fullmatch(version.strip()) for version in rest.split(","))
