"""What happened on the bus, asked of the nodes: runs, one run in full, and why an invocation waits or ended as it did. Says it in words; keeps nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec
import nats.errors
from msgspec import Struct

from faas import subjects
from faas.calling.connection import QUESTION_S, Connection
from faas.errors import BusUnavailable, ConfigInvalid, NoSuchInvocation
from faas.runs import Filter, Held, Holding, Letter, Place, Run, Told, Try, ending
from faas.units import Duration, format_duration

TOLD_S = 10.0
"""A node reads what is new on the bus before it answers, for some seconds at most."""


class RunInFull(Struct, frozen=True, kw_only=True):
    """One invocation: `tries` are its usage records, `held` what a node does with it now. `behind` as in Told."""

    run: Run
    tries: tuple[Try, ...] = ()
    letter: Letter | None = None
    behind: int = 0
    held: Held | None = None
    holder: str = ""  # the node of `held`


class Why(Struct, frozen=True, kw_only=True):
    """Why an invocation is where it is. `because` is a sentence; `chain` one for each attempt so far."""

    invocation: str
    tenant: str
    function: str
    state: Literal["waiting", "running", "ended"]
    because: str
    chain: tuple[str, ...] = ()
    outcome: str = ""
    reason: str = ""
    node: str = ""
    worker: str = ""


async def told(connection: Connection, asked: Filter) -> Told:
    """The answer of the first node that has a projection. Raises BusUnavailable where none has."""
    problems = []
    for node in await connection.nodes():
        try:
            message = await connection.ask(subjects.node(node, "runs"), msgspec.json.encode(asked), {}, wait_s=TOLD_S)
        except (TimeoutError, nats.errors.NoRespondersError):
            problems.append(f"{node} did not answer")
            continue
        answer = msgspec.json.decode(message.data, type=Told)
        if not answer.absent:
            return answer
        problems.append(f"{node} has no projection: {answer.absent}")
    raise BusUnavailable(f"no node can say what ran: {'; '.join(problems)}")


async def holding(connection: Connection, invocation: str) -> list[Holding]:
    """What every node that answers has of an invocation now."""

    async def ask(node: str) -> Holding | None:
        try:
            message = await connection.ask(subjects.node(node, "why"), invocation.encode(), {}, wait_s=QUESTION_S)
        except (TimeoutError, nats.errors.NoRespondersError):
            return None
        return msgspec.json.decode(message.data, type=Holding)

    answers = await asyncio.gather(*(ask(node) for node in await connection.nodes()))
    return [answer for answer in answers if answer is not None]


async def in_full(connection: Connection, invocation: str) -> tuple[RunInFull, Why]:
    """One invocation, and why it is where it is. Raises NoSuchInvocation."""
    holdings = await holding(connection, invocation)
    answer = await told(connection, Filter(invocation=invocation, limit=1))
    holder = next((one for one in holdings if one.held is not None), None)
    held = holder.held if holder is not None else None
    if answer.runs:
        run = answer.runs[0]
    elif held is not None:  # nothing stored its event: only the node that has it knows
        run = Run(invocation=invocation, tenant=held.tenant, function=held.function)
    else:
        behind = f"; {answer.behind} messages of the bus are not read yet, so ask again" if answer.behind else ""
        raise NoSuchInvocation(f"no invocation {invocation} in the last 30 days{behind}; `faas runs` lists what there is")
    full = RunInFull(
        run=run, tries=answer.tries, letter=answer.letter, behind=answer.behind, held=held, holder=holder.node if holder and held else ""
    )
    return full, why(full, holdings, answer.place)


# ---------------------------------------------------------------- in words


def why(full: RunInFull, holdings: Iterable[Holding], place: Place | None) -> Why:
    """Why it is where it is, from what the nodes said."""
    run, held = full.run, full.held
    chain = tuple(_attempt(one) for one in full.tries if one.kind == "attempt")
    ending = next((one.node for one in holdings if one.ending), "")
    state: Literal["waiting", "running", "ended"] = "waiting"
    if held is not None and held.stage != "queued":
        state = "running"
        doing = "its function is being loaded" if held.stage == "loading" else "it runs"
        because = f"{doing} on node {full.holder}, worker {held.worker}, since {moment(held.since_ms)} (attempt {held.attempt})"
    elif held is not None:
        because = f"it is in the queue of node {full.holder} since {moment(held.since_ms)}: {held.why}"
    elif run.outcome:
        state, because = "ended", _ended(run, full.letter)
    elif ending:
        because = f"node {ending} writes its end, or looks whether it has one"
    else:
        because = _stands(run, place)
    return Why(
        invocation=run.invocation,
        tenant=run.tenant,
        function=run.function,
        state=state,
        because=because,
        chain=chain,
        outcome=run.outcome,
        reason=run.reason,
        node=full.holder or ending or (run.node if run.outcome else ""),
        worker=held.worker if held is not None else "",
    )


def _stands(run: Run, place: Place | None) -> str:
    """Of an event that no node has in its hands."""
    so_far = f"{run.attempts} attempts, the last one {run.reason}" if run.attempts > 1 else f"one attempt: {run.reason}"
    again = f" It is tried again after {so_far}." if run.attempts else ""
    if place is None:
        return f"no node has it, and where it stands on the bus is not known.{again}"
    if place.retry_at_ms:
        return f"it is in a back-off until {moment(place.retry_at_ms)}.{again}"
    if place.gone:
        return f"its event is in {run.stream} no more: dropped with its function (`faas functions remove --purge`), or by an administrator"
    if not place.served:
        return f"no node serves its function: it waits in {run.stream} until one does, or ends as expired"
    if not place.delivered:
        others = f"up to {place.before} events of its function before it" if place.before else "nothing before it"
        return f"it is in {run.stream}, and no node has asked for it yet: {others}.{again}"
    if again:
        return f"it is in a back-off of some seconds, or about to be delivered.{again}"
    return "a node got it and has not ended it: where that node is gone, it is delivered to another one when [bus] ack_wait has passed"


def _ended(run: Run, letter: Letter | None) -> str:
    after = f" after {run.attempts} attempts" if run.attempts > 1 else "" if run.attempts else " before any attempt"
    detail = f": {run.detail}" if run.detail else ""
    buried = f"; its event is a dead letter, {letter.stream} {letter.sequence}" if letter is not None else ""
    return f"{ending(run.outcome, run.reason)} at {moment(run.ended_ms)}{after}{detail}{buried}"


def _attempt(one: Try) -> str:
    took = f"queue {_us(one.queue_us)}, load {_us(one.load_us)}, run {_us(one.run_us)}"
    detail = f": {one.detail}" if one.detail else ""
    return f"attempt {one.attempt} on node {one.node} ({one.start or 'no start'}; {took}) ended at {one.ended_at} as {ending(one.outcome, one.reason)}{detail}"


def _us(microseconds: int) -> str:
    return format_duration(microseconds / 1e6)


def moment(at_ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339; "" for 0."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23] + "Z" if at_ms else ""


def moment_of(name: str, said: str | float | None) -> int:
    """RFC 3339, or how long ago ("10m", or seconds), in milliseconds since the epoch; 0 for None. Raises ConfigInvalid."""
    if said is None:
        return 0
    now = datetime.now(UTC).timestamp()
    try:
        return round((now - (Duration.parse(said) if isinstance(said, str) else said)) * 1000)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(str(said))
    except ValueError:
        raise ConfigInvalid(
            f'{name}: {str(said)[:40]!r} is no moment; write how long ago, like "10m", or a time like 2026-11-24T08:00:00Z'
        ) from None
    return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000)
