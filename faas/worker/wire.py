"""The messages between a node and its sandboxes, and their framing: the one file that both sides share.

A frame is a four-byte big-endian length and that many bytes of msgpack, one tagged union per direction. A message above
INLINE_BYTES goes as a file in the sandbox's own directory, named by a `Spilled` frame: so no frame is ever long, and a
length prefix that claims more is an error before anything is allocated.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

INLINE_BYTES = 64 * 1024
FRAME_LIMIT_BYTES = INLINE_BYTES + 4096
"""The longest frame that either side sends or takes."""

Count = Annotated[int, Meta(ge=0)]
"""A figure that a sandbox reports: whoever runs in it can write frames, so nothing below zero is taken."""
RETRY_LIMIT_S = 7 * 86_400
Meters = Annotated[Mapping[Annotated[str, Meta(max_length=64)], Annotated[int, Meta(ge=0, le=2**53)]], Meta(max_length=20)]
Reason = Literal["error", "payload_invalid", "rejected_by_handler", "result_invalid", "result_too_large"]
"""How an invocation can end in a worker, but for a result."""

CHUNK_LIMIT_BYTES = 2**20 - 8192
"""The longest item of a stream, and the longest event that a handler publishes: with its headers the bus takes it, and it is read in one go,
so that their order holds."""
EVENTS = 1000
"""So many events may one attempt publish: `ctx.publish` refuses more, and so does the node, for who writes frames of his own."""
LOG_BYTES = 64 * 1024
"""Of what a function prints and logs in one attempt is passed on; the rest is dropped where it arises, and again by the node."""
LOG_LINE_BYTES = 16
"""What a line counts at least: its time, level and invocation take more than that on the bus."""
LOG_FRAMES = 2 * LOG_BYTES // LOG_LINE_BYTES
"""So many `Log` frames a worker may send in one lease, lines and progress; one that sends more does not keep to what its own code does."""

BODY_FILE_BYTES = 2**20
"""A result above this is left in a file of its own: the node need not hold it in memory to pass it on."""

SECRETS_BYTES = 48 * 1024
"""Of the secrets of one function: they travel in the frame itself, however long the rest is, and never in a file of the sandbox's directory."""

SOCKET_NAME = "socket"
SPILL_PREFIX = "spill-"
_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """The peer sent something that is not of this protocol."""


class _Message(Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


# ---------------------------------------------------------------- both directions


class Spilled(_Message, frozen=True, tag="spilled", kw_only=True):
    """The next message stands in this file of the sandbox's directory; the receiver removes it. `file` is a bare name, SPILL_PREFIX first.

    `secrets` are those of the `Load` that stands there without them: nothing of them is written to a disk.
    """

    file: str
    size: int
    secrets: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"Spilled(file={self.file!r}, size={self.size})"


# ---------------------------------------------------------------- node -> zygote


class Spawn(_Message, frozen=True, tag="spawn", kw_only=True):
    """To a template: fork a sandbox, whose zygote connects in `directory` (absolute)."""

    sandbox: str
    directory: str


class Fork(_Message, frozen=True, tag="fork", kw_only=True):
    """To a sandbox's zygote: fork a worker, which warms up and connects."""

    worker: str


# ---------------------------------------------------------------- node -> worker


class File(Struct, frozen=True):
    """One source file: `path` relative to the function's folder, forward slashes."""

    path: str
    data: bytes


class Load(_Message, frozen=True, tag="load", kw_only=True):
    """Become the worker of this function version: write the files, import the handler, run `load`."""

    function: str
    tenant: str
    version: str
    handler: str  # module:attribute
    files: tuple[File, ...]
    tags: Mapping[str, str] = {}
    result_limit_bytes: int
    env: Mapping[str, str] = {}
    mounts: Mapping[str, str] = {}  # target -> absolute path
    overlay: str = ""  # absolute path of the folder with the function's own packages
    secrets: Mapping[str, str] = {}  # name -> value; together at most SECRETS_BYTES
    secrets_folder: str = ""  # absolute path of an empty folder of this worker's own, for a file of each

    def __repr__(self) -> str:
        return f"Load(function={self.function!r}, version={self.version!r}, secrets={list(self.secrets)})"


class Invoke(_Message, frozen=True, tag="invoke", kw_only=True):
    """Run `handle` once. Attributes are CloudEvents'; `remaining_s` is what is left until the deadline when this was sent."""

    invocation_id: str
    attempt: int
    remaining_s: float
    id: str
    source: str
    event_type: str = ""
    subject: str = ""
    time: str = ""
    datacontenttype: str = ""
    dataschema: str = ""
    extensions: Mapping[str, str] = {}
    data: bytes
    stream: bool = False  # somebody waits for the items: send each as a `Chunk`
    file: str = ""  # the data is not in `data` but in this file of the sandbox's directory, like that of a `Spilled`


class Close(_Message, frozen=True, tag="close", kw_only=True):
    """To a worker: run the handler's `close` and exit."""


# ---------------------------------------------------------------- sandbox -> node


class Hello(_Message, frozen=True, tag="hello", kw_only=True):
    """The first frame of every connection. `role`: template | zygote | worker | stdout | stderr; `id` names the sandbox or the worker.

    A template or a zygote adds what it is; a worker says hello when its warm-up is done.
    """

    role: str
    id: str
    python: str = ""  # "3.11.7"
    threads: int = 0  # of a template after its preload; more than one refuses to fork
    isolated: bool = False  # in a PID namespace of its own
    preload_us: Count = 0


class Broken(_Message, frozen=True, tag="broken", kw_only=True):
    """A template, zygote or spare cannot do what it was asked, for good: preload or warm-up raised, fork refused."""

    id: str
    detail: str


class Exited(_Message, frozen=True, tag="exited", kw_only=True):
    """From a zygote: a worker's process has ended. `code` is its exit code, or minus the signal's number. Usage is the process' whole life."""

    worker: str
    code: int
    cpu_us: Count
    memory_peak_bytes: Count


class Loaded(_Message, frozen=True, tag="loaded", kw_only=True):
    """The handler is imported and `load` has returned. Schemas are JSON Schema text, "" where there is none."""

    load_us: Count
    cpu_us: Count
    memory_peak_bytes: Count
    input_schema: str = ""
    output_schema: str = ""


class LoadFailed(_Message, frozen=True, tag="load_failed", kw_only=True):
    """Import or `load` raised; the worker exits."""

    detail: str
    traceback: str = ""
    load_us: Count
    cpu_us: Count
    memory_peak_bytes: Count


class Log(_Message, frozen=True, tag="log", kw_only=True):
    """One or more lines that the function printed or logged; sent at any time. `level` is lower case, `at` seconds since the epoch."""

    stream: Literal["stdout", "stderr", "log", "progress"]
    level: Annotated[str, Meta(max_length=32)] = "info"
    logger: Annotated[str, Meta(max_length=200)] = ""
    text: str
    at: float
    fraction: Annotated[float, Meta(ge=0, le=1)] | None = None  # of a progress


class Chunk(_Message, frozen=True, tag="chunk", kw_only=True):
    """One item of a stream, while the handler still runs."""

    data: bytes
    content_type: Annotated[str, Meta(max_length=200)]


class Emit(_Message, frozen=True, tag="emit", kw_only=True):
    """An event that the handler publishes while it runs. `id` is the same where the same attempt of the same event publishes the same again."""

    subject: str
    id: Annotated[str, Meta(max_length=200)]
    data: bytes
    content_type: Annotated[str, Meta(max_length=200)]


class Metered(_Message, frozen=True, tag="metered", kw_only=True):
    """What `ctx.meter` has counted so far, all of it: what is known of an attempt that is killed."""

    meters: Meters


class Result(_Message, frozen=True, tag="result", kw_only=True):
    """`handle` returned. `run_us` is from its first line to its return; `memory_peak_bytes` the peak resident size in that time."""

    body: bytes
    content_type: str
    run_us: Count
    cpu_us: Count
    memory_peak_bytes: Count
    meters: Meters = {}
    file: str = ""  # the body is not in `body` but in this file of the sandbox's directory, like that of a `Spilled`
    size: Count = 0


class Failed(_Message, frozen=True, tag="failed", kw_only=True):
    """`handle` did not return a result. `reason` is one of error, payload_invalid, rejected_by_handler, result_invalid, result_too_large."""

    reason: Reason
    detail: str
    traceback: str = ""
    retry_after_s: Annotated[float, Meta(ge=0, le=RETRY_LIMIT_S)] | None = None  # the handler raised Retry
    run_us: Count
    cpu_us: Count
    memory_peak_bytes: Count
    meters: Meters = {}


HostMessage = Spawn | Fork | Load | Invoke | Close | Spilled
Said = Log | Chunk | Emit | Metered
"""What a worker says while it still owes its answer."""
SandboxMessage = Hello | Broken | Exited | Loaded | LoadFailed | Result | Failed | Spilled | Log | Chunk | Emit | Metered

_encoder = msgspec.msgpack.Encoder()
_host_decoder: msgspec.msgpack.Decoder[HostMessage] = msgspec.msgpack.Decoder(HostMessage)
_sandbox_decoder: msgspec.msgpack.Decoder[SandboxMessage] = msgspec.msgpack.Decoder(SandboxMessage)


def decode_host(body: bytes | memoryview) -> HostMessage:
    """A message of the node. Raises WireError."""
    try:
        return _host_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"no message of the node: {error}") from error


def decode_sandbox(body: bytes | memoryview) -> SandboxMessage:
    """A message of a sandbox. Raises WireError."""
    try:
        return _sandbox_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"no message of a sandbox: {error}") from error


def encodable(text: str) -> str:
    """Without what UTF-8 cannot hold: an author's text may quote a file name with half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def encode(message: HostMessage | SandboxMessage, directory: str = "", name: str = "") -> bytes:
    """The frame of a message. One above INLINE_BYTES is written to `directory`/SPILL_PREFIX+`name` and its `Spilled` frame is returned.

    Of a result above BODY_FILE_BYTES the body alone is; of a `Load` the secrets are not.
    """
    file = SPILL_PREFIX + name
    if isinstance(message, Result) and len(message.body) > BODY_FILE_BYTES:
        _write(directory, file, message.body)
        message = msgspec.structs.replace(message, body=b"", file=file, size=len(message.body))
    body = _encoder.encode(message)
    if len(body) > INLINE_BYTES:
        secrets: Mapping[str, str] = {}
        if isinstance(message, Load) and message.secrets:
            secrets, body = message.secrets, _encoder.encode(msgspec.structs.replace(message, secrets={}))
        _write(directory, file, body)
        body = _encoder.encode(Spilled(file=file, size=len(body), secrets=secrets))
    return _LENGTH.pack(len(body)) + body


def _write(directory: str, file: str, body: bytes) -> None:
    with open(create_spilled(directory, file), "wb") as spill:
        spill.write(body)


def create_spilled(directory: str, file: str) -> int:
    """A descriptor to write such a file with; the file is new. Raises OSError."""
    return os.open(os.path.join(directory, file), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def open_spilled(spilled: Spilled, directory: str, limit_bytes: int) -> int:
    """A descriptor of the file that a `Spilled` frame names, which is removed. Raises WireError where name, kind or size are not as they must be."""
    if not spilled.file.startswith(SPILL_PREFIX) or "/" in spilled.file or "\0" in spilled.file or not 0 <= spilled.size <= limit_bytes:
        raise WireError(f"spilled file {spilled.file[:80]!r} of {spilled.size} bytes refused; the limit is {limit_bytes}")
    path = os.path.join(directory, spilled.file)
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        seen = os.fstat(descriptor)
        os.unlink(path)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise WireError(f"spilled file {spilled.file!r}: {error.strerror}") from error
    if not stat.S_ISREG(seen.st_mode) or seen.st_size != spilled.size:
        os.close(descriptor)
        raise WireError(f"spilled file {spilled.file!r} is not the {spilled.size} bytes that were announced")
    return descriptor


def read_spilled(spilled: Spilled, directory: str, limit_bytes: int) -> bytes:
    """The body that a `Spilled` frame names, whose file is removed. Raises WireError where name, kind or size are not as they must be."""
    try:
        with open(open_spilled(spilled, directory, limit_bytes), "rb") as file:
            body = file.read(spilled.size + 1)
    except OSError as error:
        raise WireError(f"spilled file {spilled.file!r}: {error.strerror}") from error
    if len(body) != spilled.size:
        raise WireError(f"spilled file {spilled.file!r} is not the {spilled.size} bytes that were announced")
    return body


class FrameReader:
    """Cuts a byte stream into frame bodies. Holds at most one frame and what was fed last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are whole now. Raises WireError at a length above FRAME_LIMIT_BYTES, before reading further."""
        buffer = self._buffer
        if not buffer and len(data) > 4 and _LENGTH.unpack_from(data)[0] == len(data) - 4 <= FRAME_LIMIT_BYTES:
            yield data[4:]  # one frame and nothing else, as most reads are: no copy into the buffer and out again
            return
        buffer += data
        while len(buffer) >= 4:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > FRAME_LIMIT_BYTES:
                raise WireError(f"a frame of {length} bytes; the limit is {FRAME_LIMIT_BYTES}")
            if len(buffer) < 4 + length:
                return
            body = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            yield body

    def rest(self) -> bytes:
        """What was fed beyond the last whole frame, taken out."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest
