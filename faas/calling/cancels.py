"""Asking the nodes to cancel an invocation, and which function it is of where only its id is known."""

from __future__ import annotations

import msgspec
import nats.errors
from msgspec import Struct

from faas import subjects
from faas.calling.connection import Connection
from faas.errors import BusUnavailable
from faas.runs import Cancelled

ANSWER_S = 30.0
"""A node may look through a hundred thousand waiting events first."""


class _State(Struct, frozen=True):
    subjects: dict[str, int] | None = None


class _Info(Struct, frozen=True):
    state: _State = _State()


async def cancel(connection: Connection, *, tenant: str, function: str, invocation: str) -> Cancelled:
    """Raises BusUnavailable."""
    try:
        message = await connection.ask(subjects.cancel(tenant, function, invocation), b"", {}, wait_s=ANSWER_S)
    except nats.errors.NoRespondersError:
        raise BusUnavailable("no node answers on this bus; start one with `faas up`") from None
    except TimeoutError:
        raise BusUnavailable(f"no answer within {ANSWER_S:g} s whether {invocation} could be cancelled") from None
    answer = msgspec.json.decode(message.data, type=Cancelled)
    if answer.error:
        raise BusUnavailable(f"{invocation} could not be cancelled: {answer.error}")
    return answer


async def function_of(connection: Connection, tenant: str, invocation: str) -> str:
    """The function whose outcome or attempts are stored under this id, "" where nothing is."""
    for kind in ("outcome", "attempt"):
        request = msgspec.json.encode({"subjects_filter": f"faas.{kind}.{tenant}.*.{invocation}"})
        try:
            message = await connection.ask(f"$JS.API.STREAM.INFO.{subjects.OUTCOMES}", request, {}, wait_s=5.0)
        except (TimeoutError, nats.errors.NoRespondersError):
            raise BusUnavailable(f"no stream {subjects.OUTCOMES} on this bus; is a node running?") from None
        for subject in msgspec.json.decode(message.data, type=_Info).state.subjects or {}:
            return subject.split(".")[3]
    return ""
