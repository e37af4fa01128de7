"""What crosses boundaries: function specs, runtime profiles, events, outcomes and usage records. Pure data; knows no bus, no disk, no clock.

Names and defaults are those of the contract; a field's encoded name is the key that people or the bus see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from faas.triggers import Trigger
from faas.units import Duration, Size

NAME_PATTERN = r"[a-z][a-z0-9-]{0,62}"
"""Names of functions, tenants and profiles: a token of a subject, a folder, a label."""
SECRET_PATTERN = r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*"
"""Names of secrets, at most 63 characters: a file, a part of a variable, a key of `ctx.secrets`."""

# ---------------------------------------------------------------- functions and profiles, as people write them


class Mount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read-only data: `source` is a folder inside of the function's, or an absolute one that the node allows; `target` its name in `ctx.mounts`."""

    source: str
    target: str


class Gpu(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the function asks of GPUs. Until placement exists only `count` with `optional = true` is accepted, and runs on the CPU."""

    count: int = 0
    optional: bool = False


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one attempt, at most the profile's."""

    timeout_s: Duration = field(name="timeout", default=Duration(30))
    load_timeout_s: Duration = field(name="load_timeout", default=Duration(300))
    queue_timeout_s: Duration = field(name="queue_timeout", default=Duration(6 * 3600))
    memory_bytes: Size = field(name="memory", default=Size(2 * 2**30))
    cpus: float = 2
    pids: int = 128
    payload_bytes: Size = field(name="payload", default=Size(64 * 2**20))


class RetryPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which ends are tried again, how often, and after how long."""

    max_attempts: int = 3
    on: tuple[Literal["crash", "gpu", "timeout", "error"], ...] = ("crash", "gpu")
    backoff_s: Duration = field(name="backoff", default=Duration(2))
    max_backoff_s: Duration = field(name="max_backoff", default=Duration(60))
    dead_letter: bool = True


class Scale(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers of one function on one node."""

    min_warm: int = 0
    max_workers: int = 4
    keep_alive_s: Duration = field(name="keep_alive", default=Duration(300))
    weight: float = 1


class Output(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a succeeded result also goes, as an event."""

    publish: str = ""


class FunctionSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed `function.toml`. `name` is empty there where the folder's name holds; `registry.spec` fills it in."""

    name: str = ""
    handler: str = "handler:handle"
    runtime: str = "standard"
    tenant: str = "default"
    tags: Mapping[str, str] = {}
    dependencies: tuple[str, ...] = ()  # requirements of this function alone, as written; its lock is the version's
    env: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()  # names; the values are the node's, and in no version
    triggers: tuple[Trigger, ...] = field(name="trigger", default=())
    mounts: tuple[Mount, ...] = field(name="mount", default=())
    gpu: Gpu = Gpu()
    limits: Limits = Limits()
    retry: RetryPolicy = RetryPolicy()
    scale: Scale = Scale()
    output: Output = Output()


class SourceFile(Struct, frozen=True):
    """One file of a function's folder: `path` relative to it with forward slashes."""

    path: str
    data: bytes


class MountedFolder(Struct, frozen=True, kw_only=True):
    """A folder that a function mounts, as it was when its declaration was read; `source` is absolute.

    `digest` is a SHA-256 in hex: with `copied`, of relative paths and contents of a folder inside of the function's; else of
    relative paths, sizes and modification times of a folder of the node, which is used where it is and may be large.
    """

    target: str
    source: str
    digest: str
    copied: bool


class FunctionVersion(Struct, frozen=True, kw_only=True):
    """A function as it is served.

    `version` is the first 16 hex digits of the SHA-256 of its declaration, its source, its lock and the mounts inside of its folder.
    """

    spec: FunctionSpec
    version: str
    files: tuple[SourceFile, ...]
    lock: bytes = b""  # hash-locked requirements of its `dependencies`, "" where it has none
    mounts: tuple[MountedFolder, ...] = ()
    example: bytes = b""  # example_event.json as it stands, "" where there is none
    file: str = ""  # where it is declared, as errors name it: "hello/function.toml", "hello.py"
    declaration: bytes = b""  # its words, a line of it where the file has it

    @property
    def key(self) -> tuple[str, str]:
        """(tenant, function): one flow of the fair queue, one registration."""
        return (self.spec.tenant, self.spec.name)


class FunctionReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function as `faas functions --json` lists it. `state` is "ready", "invalid" or "withdrawn"; the latter two have `error`, which names file and key.

    A function that is ready may have one too: what is wrong with a newer version of it.

    What stands behind `not_enforced` is filled in only where one function is asked for by its name.
    """

    name: str
    tenant: str
    version: str
    runtime: str
    state: Literal["ready", "invalid", "withdrawn"] = field()
    error: str = ""
    triggers: tuple[Trigger, ...] = ()
    not_enforced: tuple[str, ...] = ()  # limits that this machine cannot enforce: "memory", "cpus", "pids"
    declaration: Mapping[str, object] = {}  # every key in effect, as people write it
    environment: str = ""  # digest of what its workers run in, "" before it is built
    secrets: Mapping[str, str] = {}  # by name: "version …", which changes with its value, or why it is missing here
    loaded: bool = False  # whether a worker has loaded this version on the node that answers
    input_schema: str = ""  # JSON Schema text, "" where the handler's annotation has none
    output_schema: str = ""


class ProfilePool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sandboxes of a profile on one node."""

    min_warm: int = 1
    spares: int = 1
    max: int = 8
    keep_alive_s: Duration = field(name="keep_alive", default=Duration(600))


class ProfileLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upper bounds of every function of the profile."""

    memory_bytes: Size = field(name="memory", default=Size(8 * 2**30))
    cpus: float = 4
    pids: int = 256


class RuntimeProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed `profile.toml`. `name` is the folder's; `folder` is where it was read, absolute."""

    version: str = "1"
    python: str = ""  # "3.11"; empty: the minor version that runs the node
    preload: tuple[str, ...] = ()
    warmup: str = ""
    requirements: str = "requirements.lock"
    pool: ProfilePool = ProfilePool()
    limits: ProfileLimits = ProfileLimits()
    name: str = ""
    folder: str = ""


class Environment(Struct, frozen=True, kw_only=True):
    """A built environment: the interpreter to start, and `digest`, the SHA-256 hex of profile, lock and interpreter version.

    Where it is that of a function with dependencies, `digest` is of those and the function's lock, and the size that of the overlay.
    """

    profile: str
    digest: str
    python: str  # absolute path of its interpreter
    size_bytes: int = 0
    overlay: str = ""  # absolute path of the folder with a function's own packages, "" where it has none


# ---------------------------------------------------------------- events


class Event(Struct, frozen=True, kw_only=True):
    """What arrived, CloudEvents attributes and the payload as bytes. `source` may be empty; `time` is RFC 3339 text or ""."""

    id: str
    source: str
    type: str
    subject: str  # the CloudEvents attribute, not the NATS subject
    time: str
    datacontenttype: str
    dataschema: str
    extensions: Mapping[str, str]
    data: bytes
    explicit_id: bool = True  # False: the id is the place in the stream, so that no other event can have it
    dataref: str = ""  # the name of the object of FAAS_PAYLOADS that is its data; "" where `data` is


class Due(Struct, frozen=True, kw_only=True):
    """What an event on `faas.due...` was before it waited, or was redriven. `first_seen` is seconds since the epoch; `subject` where it was published."""

    invocation: str
    first_seen: float
    event_id: str
    source: str
    subject: str = ""
    message_id: str = ""  # the event's own Nats-Msg-Id
    redrive_of: str = ""  # the invocation whose dead letter it was
    attempt: int = 0


class Control(Struct, frozen=True, kw_only=True):
    """What the `Faas-*` headers of an event ask for."""

    timeout_s: float | None = None
    deadline_at: float | None = None  # seconds since the epoch, wall clock
    reply_to: str = ""
    depth: int = 0
    chunk_to: str = ""
    key: str = ""  # idempotency key: whatever comes with it is one invocation


class EventInvalid(Struct, frozen=True):
    """An event that cannot be decoded: a value, since it is expected. `detail` is one sentence for its sender."""

    detail: str


# ---------------------------------------------------------------- ends

OutcomeKind = Literal["succeeded", "failed", "timed_out", "over_budget", "crashed", "cancelled", "rejected", "expired"]
Start = Literal["", "warm", "spare", "fork", "cold"]

OUTCOME_OF_REASON: Mapping[str, OutcomeKind] = {
    "": "succeeded",
    **dict.fromkeys(("error", "load_error", "result_invalid", "result_too_large", "environment_failed"), "failed"),
    **dict.fromkeys(("timeout", "load_timeout"), "timed_out"),
    **dict.fromkeys(("gpu_seconds", "cost"), "over_budget"),
    **dict.fromkeys(("worker_lost", "oom", "gpu_oom", "gpu_memory", "gpu_fault", "protocol_error", "fate_unknown"), "crashed"),
    "cancelled": "cancelled",
    **dict.fromkeys(
        (
            "event_invalid",
            "payload_invalid",
            "payload_too_large",
            "rejected_by_handler",
            "unknown_function",
            "budget_exhausted",
            "policy",
            "depth",
        ),
        "rejected",
    ),
    **dict.fromkeys(("queue_timeout", "deadline"), "expired"),
}
"""The closed list of the contract; "" is a success."""


class Ended(Struct, frozen=True, kw_only=True):
    """How an attempt, or an invocation that never started one, ended. A failure has a reason and `detail`; a success has a body."""

    reason: str = ""
    detail: str = ""
    traceback: str = ""
    body: bytes = b""
    content_type: str = ""
    retry_after_s: float | None = None  # set where the handler raised Retry
    object: str = ""  # the result is not in `body` but there: FAAS_PAYLOADS/<name>
    object_bytes: int = 0

    @property
    def body_bytes(self) -> int:
        """The size of the result, wherever that is."""
        return self.object_bytes if self.object else len(self.body)

    @property
    def outcome(self) -> OutcomeKind:
        return OUTCOME_OF_REASON[self.reason]


class Phases(Struct, frozen=True, kw_only=True):
    """How an attempt got its worker, and its clocks in microseconds."""

    start: Start = ""
    queue_us: int = 0
    load_us: int = 0
    run_us: int = 0


class Outcome(Struct, frozen=True, kw_only=True):
    """An end of an invocation, as it goes onto the bus; the usage records of its attempts go beside it, encoded."""

    invocation_id: str
    tenant: str
    function: str
    version: str
    event_id: str
    attempt: int  # 0: ended before any attempt
    ended: Ended
    phases: Phases
    depth: int = 0
    traceparent: str = ""  # of its last attempt
    tracestate: str = ""
    redrive_of: str = ""
    payload_digest: str = ""  # where it has an idempotency key: what a repetition is compared with


class GpuUse(Struct, frozen=True, kw_only=True):
    """One device's part in one attempt."""

    uuid: str  # NVML UUID; the device index changes across reboots
    name: str
    share_ppm: int  # reserved bytes / device bytes; 1_000_000 where exclusive
    us: int  # lease start to lease end


class UsageRecord(Struct, frozen=True, kw_only=True):
    """What one attempt (or one load) consumed. Field names are the contract's; `record_id` is the primary key and always stands for the same bytes."""

    record_id: str
    kind: Literal["attempt", "load", "standby", "overrun"]
    record_type: Literal["original", "retraction", "restatement"] = "original"
    billable: bool
    invocation_id: str
    attempt: int
    tenant: str
    function: str
    version: str
    environment: str
    policy: str = ""
    policy_version: str = ""
    tags: Mapping[str, str]
    node: str
    outcome: str
    reason: str
    started_at: str  # RFC 3339 with microseconds, UTC
    ended_at: str
    start: Start
    queue_us: int
    load_us: int
    run_us: int
    gpus: tuple[GpuUse, ...] = ()
    gpu_memory_peak_bytes: int = 0
    gpu_memory_byte_us: int = 0
    energy_mj: int = 0
    energy_method: Literal["exclusive", "attributed", "none"] = "none"
    energy_error_mj: int = 0
    cpu_us: int
    memory_peak_bytes: int
    memory_byte_us: int
    bytes_in: int
    bytes_out: int
    meters: Mapping[str, int] = {}
    cost_nanousd: int
    price_version: str
