"""Every reason of the table of exits as HTTP says it: one status for each, whichever way the answer is waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from doors import Doors, problem
from node import Node

from faas.bus.outcomes import STATUS_OF_REASON
from faas.identity import invocation_id
from faas.model import OUTCOME_OF_REASON

STATUS = {
    400: ("event_invalid", "payload_invalid"),
    403: ("policy",),
    404: ("unknown_function",),
    408: ("queue_timeout", "deadline"),
    413: ("payload_too_large",),
    422: ("rejected_by_handler", "depth"),
    429: ("budget_exhausted",),
    500: ("error", "load_error", "result_invalid", "result_too_large", "environment_failed"),
    502: ("worker_lost", "oom", "gpu_oom", "gpu_memory", "gpu_fault", "protocol_error", "fate_unknown"),
    504: ("timeout", "load_timeout", "gpu_seconds", "cost", "cancelled"),
}
"""The contract's words, reason by reason."""
ENDS = [
    # function, payload, headers, reason
    ("double", b'{"n": 1}', {"Faas_Timeout": "soon"}, "event_invalid"),
    ("double", b'{"n": "x"}', {}, "payload_invalid"),
    ("large", b"1" * 102_401, {}, "payload_too_large"),
    ("rejects", b"1", {}, "rejected_by_handler"),
    ("double", b'{"n": 1}', {"Faas_Depth": "17"}, "depth"),
    ("nobody", b"1", {}, "unknown_function"),
    ("double", b'{"n": 1}', {"Faas_Deadline": "2026-01-01T00:00:00Z"}, "deadline"),
    ("raises", b"1", {}, "error"),
    ("always", b"1", {}, "error"),
    ("badload", b"1", {}, "load_error"),
    ("notjson", b"1", {}, "result_invalid"),
    ("large", b"102401", {}, "result_too_large"),
    ("noenv", b"1", {}, "environment_failed"),
    ("dies", b"1", {}, "worker_lost"),
    ("garbage", b"1", {}, "protocol_error"),
    ("hangs", b"1", {}, "timeout"),
    ("slowload", b"1", {}, "load_timeout"),
]


def status_of(reason: str) -> int:
    (status,) = [status for status, reasons in STATUS.items() if reason in reasons]
    return status


@pytest.fixture
async def door(node: Node) -> AsyncIterator[Doors]:
    async with aiohttp.ClientSession(node.info["http"]) as http:
        yield Doors(node, http)


def test_every_reason_of_the_closed_list_has_the_status_of_the_contract() -> None:
    """Those too that nothing of this build can end with: a client may be written for them."""
    expected = {reason: status for status, reasons in STATUS.items() for reason in reasons}

    assert dict(STATUS_OF_REASON) == expected
    assert set(expected) == set(OUTCOME_OF_REASON) - {""}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("way", ["at once", "wait", "key"])
@pytest.mark.parametrize(("function", "payload", "headers", "reason"), ENDS, ids=[f"{end[0]}-{end[3]}" for end in ENDS])
async def test_an_end_has_its_status_and_is_a_problem_document(
    door: Doors, function: str, payload: bytes, headers: dict[str, str], reason: str, way: str
) -> None:
    """What a caller decides by: whether to ask again, to mend what it sent, or to tell somebody."""
    asked = {"at once": {}, "wait": {"Prefer": "wait=20"}, "key": {"Idempotency_Key": f"{function}-{reason}"}}[way]
    answer = await door.post(f"/invoke/default/{function}", payload, Content_Type="application/json", **headers, **asked)
    _, said, body = answer

    assert problem(answer) == (status_of(reason), reason)
    assert json.loads(body)["detail"]
    if "faas-outcome" in said:  # it was an invocation, and no request that the door itself refused
        assert (said["faas-outcome"], said["faas-reason"]) == (OUTCOME_OF_REASON[reason], reason)


async def test_a_call_that_waits_too_long_for_a_worker_is_408(door: Doors) -> None:
    """Expired in the queue: nothing was started."""
    first = asyncio.create_task(door.post("/invoke/default/slow", b"2.0", Content_Type="application/json"))
    await running(door)
    answer = await door.post("/invoke/default/slow", b"0", Content_Type="application/json")

    assert problem(answer) == (status_of("queue_timeout"), "queue_timeout")
    assert (await first)[0] == 200


async def test_a_call_that_somebody_cancels_is_504(door: Doors) -> None:
    """Whoever waits for it is told, and not that it failed by itself."""
    invocation = invocation_id("default", "slow", source="", event_id="cancelled")
    asked = asyncio.create_task(door.post("/invoke/default/slow", b"30.0", Content_Type="application/json", Idempotency_Key="cancelled"))
    await running(door)
    cancelled = await door.send("DELETE", f"/invocations/{invocation}")

    assert (cancelled[0], json.loads(cancelled[2])["cancelled"]) == (200, True)
    assert problem(await asked) == (status_of("cancelled"), "cancelled")


async def test_memory_beyond_the_limit_is_502(door: Doors, node: Node) -> None:
    """Where control groups are writable; elsewhere the limit is not enforced, and `functions` says so."""
    _, _, body = await door.send("GET", "/functions/default/badoom")
    if "memory" in json.loads(body)["not_enforced"]:
        pytest.skip("this machine cannot enforce limits.memory")
    answer = await door.post("/invoke/default/badoom", b"1", Content_Type="application/json")

    assert problem(answer) == (status_of("oom"), "oom")


async def test_a_deadline_that_passes_while_it_runs_is_504(door: Doors) -> None:
    """Started and not finished, where 408 was never started."""
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    answer = await door.post("/invoke/default/flooded", b"20.0", Content_Type="application/json", Faas_Deadline=soon)

    assert problem(answer) == (504, "timeout")


async def running(door: Doors) -> None:
    """Until the one worker of `slow` is busy, as the node counts it."""
    async with asyncio.timeout(8):
        while True:
            _, _, text = await door.send("GET", "/metrics")
            if b'faas_workers{function="slow",state="leased",tenant="default"} 1.0' in text:
                return
