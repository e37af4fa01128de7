"""Every error that this package raises on purpose: one tree, a stable `code` each. Knows nothing of where they are raised.

Refusals that are expected (an event too old, a payload that does not fit) are values (`model.Ended`), not exceptions.
"""


class FaasError(Exception):
    """Root of the tree. `code` is what other programs see and never changes."""

    code = "error"


class ConfigInvalid(FaasError):
    """A file, an option or an environment variable that people write says something that cannot be. The message names it and what would be right."""

    code = "config_invalid"


class SpecInvalid(ConfigInvalid):
    """A function or a runtime profile cannot be registered. `file` is relative to the folder that was read; `key` is dotted, "" where the whole file is meant; `line` 0 where none is known."""

    code = "spec_invalid"

    def __init__(self, file: str, key: str, problem: str, *, line: int = 0) -> None:
        where = [file, *([f"line {line}"] if line else []), *([key] if key else [])]
        super().__init__(": ".join([*where, problem]))
        self.file, self.key, self.problem, self.line = file, key, problem, line


class StateLocked(FaasError):
    """Another node runs on the same state folder."""

    code = "state_locked"


class BusUnavailable(FaasError):
    """The bus did not take or answer something in time, or the connection is down."""

    code = "bus_unavailable"


class StoreRefused(BusUnavailable):
    """A stream is there and did not take a message, in its own words: it is full, or configured against it."""

    code = "store_refused"


class ServerFailed(FaasError):
    """The embedded nats-server is missing, too old, or did not become ready."""

    code = "server_failed"


class MessageTooLarge(FaasError):
    """Head and body together are above what the bus takes; publishing it would cost the connection."""

    code = "message_too_large"

    def __init__(self, subject: str, *, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{subject}: {size_bytes} bytes with headers, the bus takes {limit_bytes}; [bus] max_payload of the node says how much"
        )
        self.subject, self.size_bytes, self.limit_bytes = subject, size_bytes, limit_bytes


class PayloadLost(FaasError):
    """A body that is in the object store is gone, or is not what its digest says."""

    code = "payload_lost"


class SubjectInvalid(FaasError):
    """Text that is no NATS subject was about to go onto the wire, where it could be read as another command."""

    code = "subject_invalid"


class AlreadyStored(FaasError):
    """The guard of an outcome's subject refused a second one (JetStream error 10071)."""

    code = "already_stored"


class KeyReused(FaasError):
    """An idempotency key came with another payload than the first time."""

    code = "idempotency_key_reused"


class AskAgain(FaasError):
    """Nothing was lost and nothing can be answered now: the same request with the same idempotency key may be sent again, to any node."""

    code = "ask_again"


class DeployRefused(FaasError):
    """The registry does not take a change: somebody else made one in the same moment, or there is nothing to go back to."""

    code = "deploy_refused"


class EnvironmentFailed(FaasError):
    """The environment of a runtime profile, or the packages of a function, cannot be built. `detail` holds the builder's last lines.

    `name` is the profile's or the function's; `interrupted` where the builder was killed, so that the next try may go well.
    """

    code = "environment_failed"

    def __init__(self, name: str, detail: str, *, interrupted: bool = False) -> None:
        super().__init__(f"environment of {name}: {detail}")
        self.name, self.detail, self.interrupted = name, detail, interrupted


class MountFailed(EnvironmentFailed):
    """What a function mounts cannot be put in place. To whoever waits, a part of its environment is missing."""

    def __init__(self, function: str, source: str, detail: str) -> None:
        detail = f"{source}: {detail}".encode("utf-8", "backslashreplace").decode()  # names on a disk may be no text
        FaasError.__init__(self, f"mount of {function}: {detail}")
        self.name, self.detail, self.interrupted = function, detail, False


class SecretMissing(EnvironmentFailed):
    """A secret is not there, or is none. `name` is the secret's; `detail` says where it was looked for and what to type, and holds no value."""

    def __init__(self, name: str, detail: str) -> None:
        detail = detail.encode("utf-8", "backslashreplace").decode()  # names on a disk may be no text
        detail = f"secret {name[:80]}: {detail}"
        FaasError.__init__(self, detail)
        self.name, self.detail, self.interrupted = name, detail, False


class ColdStartFailed(FaasError):
    """A template, sandbox or worker exited or fell silent before it was ready."""

    code = "cold_start_failed"

    def __init__(self, what: str, *, after_s: float, last_output: str) -> None:
        super().__init__(f"{what}: not ready after {after_s:.1f} s; last output {last_output!r}")
        self.what, self.after_s, self.last_output = what, after_s, last_output


class WorkerLost(FaasError):
    """A worker's process ended, or its connection closed, while it owed an answer. `exit` says how, in words, as far as it is known."""

    code = "worker_lost"

    def __init__(self, worker: str, exit: str, *, oom: bool = False) -> None:
        super().__init__(f"worker {worker}: {exit}")
        self.worker, self.exit, self.oom = worker, exit, oom


class ProtocolError(FaasError):
    """A peer on the worker's socket sent what `worker/wire.py` does not allow."""

    code = "protocol_error"


class InvocationFailed(FaasError):
    """An invocation ended as anything but succeeded; raised to callers by `client`. `outcome`, `code`, `detail`, `traceback` are the bus's words."""

    def __init__(self, outcome: str, code: str, *, detail: str, traceback: str = "") -> None:
        super().__init__(": ".join(dict.fromkeys((outcome, code, detail))))  # cancelled, and why: one word
        self.outcome, self.detail, self.traceback = outcome, detail, traceback
        self.code = code


class NoSuchFunction(FaasError):
    """Nobody answers for a function: it is not registered on any node, or it is invalid."""

    code = "unknown_function"


class NoSuchInvocation(FaasError):
    """No node knows an invocation: it never was, or it is older than what is kept."""

    code = "unknown_invocation"


def only(group: BaseException) -> BaseException:
    """The one error that the parts on its way have wrapped in groups; a group of several stays one."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group
