"""What comes and goes on a connection: messages, header blocks, JetStream's answers and its refusals. Knows no connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from faas.errors import BusUnavailable, FaasError

WRONG_LAST_SEQUENCE = 10071
HEAD_LINE = b"NATS/1.0\r\n"


class ApiError(FaasError):
    """JetStream refused a request. `number` is its err_code, `status` the HTTP-like code."""

    code = "api_error"

    def __init__(self, subject: str, *, status: int, number: int, description: str) -> None:
        super().__init__(f"{subject}: {description} ({number})")
        self.status, self.number, self.description = status, number, description


class NoStream(BusUnavailable):
    """Nobody stores this subject, or nobody listens on it."""

    code = "no_stream"


@dataclass(slots=True)
class Message:
    """One message as it came in. `headers` are as received, None where there are none; `status` is NATS' inline status, 0 where there is none.

    A header without a name stands for a block that cannot be read. A publisher can write a header `Status` himself: whoever
    acts on `status` looks at the subject too.
    """

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None
    status: int = 0


class Stored(Struct, frozen=True, kw_only=True):
    """JetStream's acknowledgement of a publish."""

    stream: str
    sequence: int
    duplicate: bool = False


class StoredMessage(Struct, frozen=True, kw_only=True):
    """A message read from a stream."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]


class Refusal(Struct, frozen=True, kw_only=True):
    """The error of a JetStream answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True, kw_only=True):
    """What every answer of the JetStream API may hold."""

    error: Refusal | None = None


class PublishAnswer(Answer, frozen=True, kw_only=True):
    """A PubAck."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class FoundMessage(Struct, frozen=True, kw_only=True):
    """A stored message as the API returns it; `data` and `hdrs` are base64."""

    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""
    time: str = ""


class GetAnswer(Answer, frozen=True, kw_only=True):
    """The answer of STREAM.MSG.GET."""

    message: FoundMessage | None = None


decode_ack = msgspec.json.Decoder(PublishAnswer).decode


def encode_head(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Header lines, ready to be joined with others; line breaks in values become spaces, so that no value can end its line."""
    return "".join(f"{name}: {' '.join(value.splitlines())}\r\n" for name, value in pairs).encode("utf-8", "replace")


def decode_head(raw: bytes) -> dict[str, str]:
    """A block of header lines as JetStream returns it, `NATS/1.0` first."""
    lines = (line.partition(b":") for line in raw.split(b"\r\n")[1:] if line)
    return {name.strip().decode("utf-8", "replace"): value.strip().decode("utf-8", "replace") for name, _, value in lines}


def inline_status(headers: dict[str, str] | None, data: bytes) -> int:
    """The status of a message that is nothing but one; a body, or a `Status` that is no number, makes it an ordinary message."""
    if not headers or data:
        return 0
    text = headers.get("Status", "")
    return int(text) if len(text) == 3 and text.isascii() and text.isdecimal() else 0
