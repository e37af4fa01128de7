"""The HTTP door as programs meet it: invocations at once and later, their state and their cancel, CloudEvents both ways, and one form for every error."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from doors import Doors, doors, problem

JSON = "application/json"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with doors(tmp_path_factory.mktemp("gateway")) as door:
        yield door


# ---------------------------------------------------------------- synchronous


async def test_a_result_is_the_body_and_its_headers_say_how_it_came_about(door: Doors) -> None:
    """A program that knows nothing but HTTP gets the handler's own JSON."""
    status, headers, body = await door.post("/invoke/default/double", b'{"n": 4}', Content_Type=JSON)

    assert (status, json.loads(body), headers["content-type"]) == (200, {"n2": 8}, JSON)
    assert (headers["faas-outcome"], headers["faas-function"], headers["faas-attempt"]) == ("succeeded", "double", "1")
    assert headers["ce-id"] == headers["faas-invocation"]
    assert "faas-usage" not in headers


@pytest.mark.parametrize(
    ("function", "body", "expected"),
    [
        ("double", b'{"n": "x"}', (400, "payload_invalid")),
        ("rejects", b"1", (422, "rejected_by_handler")),
        ("raises", b"1", (500, "error")),
        ("dies", b"1", (502, "worker_lost")),
        ("hangs", b"1", (504, "timeout")),
        ("nosuch", b"1", (404, "unknown_function")),
    ],
)
async def test_an_end_that_is_no_success_has_the_status_of_its_reason(
    door: Doors, function: str, body: bytes, expected: tuple[int, str]
) -> None:
    """Proxies, retries and monitors go by the status; programs by the code."""
    assert problem(await door.post(f"/invoke/default/{function}", body, Content_Type=JSON)) == expected


async def test_a_deadline_that_has_passed_is_408(door: Doors) -> None:
    """It was never started."""
    past = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()

    assert problem(await door.post("/invoke/default/double", b'{"n":1}', Content_Type=JSON, Faas_Deadline=past)) == (408, "deadline")


async def test_a_client_that_goes_away_takes_its_synchronous_invocation_along(door: Doors, tmp_path: Path) -> None:
    """Nobody reads the result: a slot that works for it is taken from others."""
    body = json.dumps(str(tmp_path)).encode()
    calling = asyncio.ensure_future(door.post("/invoke/default/waits", body, Content_Type=JSON))
    async with asyncio.timeout(8):
        while not (tmp_path / "began").exists():
            await asyncio.wait([calling], timeout=0.02)
        calling.cancel()
        while not (tmp_path / "cancelled").exists():
            await asyncio.wait([asyncio.ensure_future(door.send("GET", "/healthz"))])


async def test_a_connection_is_kept_from_one_request_to_the_next(door: Doors) -> None:
    """A handshake for each would cost more than the invocation."""
    reader, writer = await asyncio.open_connection(*door.address)
    try:
        for n in (1, 2, 3):
            body = json.dumps({"n": n}).encode()
            head = f"POST /invoke/default/double HTTP/1.1\r\nHost: {door.address[0]}\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"}")
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b'{"n2":%d}' % (2 * n))
    finally:
        writer.close()


async def test_trace_context_goes_through(door: Doors) -> None:
    """The caller's trace goes on in the function, and the answer says under which span."""
    _, headers, _ = await door.post("/invoke/default/double", b'{"n":1}', Content_Type=JSON, traceparent=TRACE)

    assert headers["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert headers["traceparent"] != TRACE


# ---------------------------------------------------------------- durable


async def test_an_invocation_is_handed_in_and_looked_up_later(door: Doors) -> None:
    """202 and Location: the event is on the bus, and the caller may go."""
    status, headers, body = await door.post("/invoke/default/double", b'{"n": 5}', Content_Type=JSON, Prefer="respond-async")
    invocation = json.loads(body)["invocation"]

    assert (status, headers["location"], headers["preference-applied"]) == (202, f"/invocations/{invocation}", "respond-async")
    ended = await door.until_ended(invocation)
    assert (ended["outcome"], ended["result"], ended["function"]) == ("succeeded", {"n2": 10}, "double")


async def test_the_result_alone_is_there_for_whoever_accepts_its_type(door: Doors) -> None:
    """A picture in base64 in a document is of no use to a browser."""
    _, _, body = await door.post("/invoke/default/back", b"\xff\x00a", Prefer="respond-async")
    invocation = json.loads(body)["invocation"]
    ended = await door.until_ended(invocation)
    status, headers, raw = await door.send("GET", f"/invocations/{invocation}", Accept="application/octet-stream")

    assert base64.b64decode(ended["result_base64"]) == b"a\x00\xff"
    assert (status, raw, headers["faas-invocation"]) == (200, b"a\x00\xff", invocation)


async def test_waiting_gives_the_outcome_where_it_comes_in_time(door: Doors) -> None:
    """A durable invocation whose caller would rather have the result at once."""
    status, headers, body = await door.post("/invoke/default/double", b'{"n": 6}', Content_Type=JSON, Prefer="wait=8")

    assert (status, json.loads(body), headers["preference-applied"]) == (200, {"n2": 12}, "wait=8")


async def test_waiting_ends_with_202_where_the_outcome_takes_longer_and_a_cancel_ends_that(door: Doors, tmp_path: Path) -> None:
    """RFC 7240; and whoever has the id can end it."""
    body = json.dumps(str(tmp_path)).encode()
    status, headers, _ = await door.post("/invoke/default/waits", body, Content_Type=JSON, Prefer="respond-async, wait=1")
    running = await door.send("GET", headers["location"])
    cancelled = await door.send("DELETE", headers["location"])
    ended = await door.until_ended(headers["faas-invocation"])

    assert (status, headers["preference-applied"]) == (202, "respond-async, wait=1")
    assert json.loads(running[2])["state"] == "running"
    assert (cancelled[0], json.loads(cancelled[2])["cancelled"]) == (200, True)
    assert (ended["outcome"], ended["problem"]["code"]) == ("cancelled", "cancelled")
    assert problem(await door.send("DELETE", headers["location"])) == (409, "already_ended")


async def test_the_same_event_again_is_the_same_invocation(door: Doors) -> None:
    """A client that lost the answer sends it again."""
    event = {"ce_specversion": "1.0", "ce_id": "again-1", "ce_source": "/shop", "ce_type": "t", "Content_Type": JSON}
    first = await door.post("/invoke/default/double", b'{"n":1}', Prefer="wait=8", **event)
    second = await door.post("/invoke/default/double", b'{"n":1}', Prefer="wait=8", **event)

    assert (first[0], second[0]) == (200, 200)
    assert first[1]["faas-invocation"] == second[1]["faas-invocation"]


@pytest.mark.parametrize("path", ["a" * 26, "nothing", "A" * 26, "..%2F..%2Fetc", "%2A", "a.%3E"])
async def test_an_invocation_that_never_was_is_unknown(door: Doors, path: str) -> None:
    """Nothing of a path is a wildcard of a subject."""
    assert problem(await door.send("GET", f"/invocations/{path}")) == (404, "unknown_invocation")
    assert problem(await door.send("DELETE", f"/invocations/{path}")) == (404, "unknown_invocation")


async def test_a_function_that_nobody_knows_is_handed_nothing(door: Doors) -> None:
    """Never a 2xx for an event that the bus has not accepted."""
    assert problem(await door.post("/invoke/default/nosuch", b"1", Prefer="respond-async")) == (404, "unknown_function")


# ---------------------------------------------------------------- CloudEvents


async def test_an_event_comes_in_binary_mode(door: Doors) -> None:
    """Attributes are headers, percent-encoded; the content type is the data's."""
    event = {"ce_specversion": "1.0", "ce_id": "%C3%A4-1", "ce_source": "/shop", "ce_type": "order", "ce_region": "eu"}
    _, _, body = await door.post("/invoke/default/whole", b"{}", Content_Type=JSON, **event)

    assert json.loads(body) == {"id": "ä-1", "source": "/shop", "type": "order", "kind": JSON, "extensions": {"region": "eu"}}


async def test_attributes_alone_are_parameters_beside_a_payload(door: Doors) -> None:
    """A picture has no room for them, and whoever sends it with curl no id."""
    _, _, body = await door.post("/invoke/default/whole", b"\xff", Content_Type="image/png", ce_width="64")
    event = json.loads(body)

    assert (event["extensions"], event["kind"], event["source"]) == ({"width": "64"}, "image/png", "/faas/client")


async def test_an_event_comes_and_goes_in_structured_mode(door: Doors) -> None:
    """One JSON document each way."""
    event = {"specversion": "1.0", "id": "s-1", "source": "/shop", "type": "order", "data": {"n": 21}}
    status, headers, body = await door.post(
        "/invoke/default/double",
        json.dumps(event).encode(),
        Content_Type="application/cloudevents+json",
        Accept="application/cloudevents+json",
    )
    result = json.loads(body)

    assert (status, headers["content-type"]) == (200, "application/cloudevents+json")
    assert (result["data"], result["source"], result["id"]) == ({"n2": 42}, "/faas/default/double", headers["faas-invocation"])


@pytest.mark.parametrize("prefer", ["", "respond-async"])
@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"Content_Type": "application/cloudevents+json"}, b"{", (400, "event_invalid")),
        ({"Content_Type": "application/cloudevents+json"}, b'{"specversion":"1.0"}', (400, "event_invalid")),
        ({"Content_Type": "application/cloudevents+xml"}, b"<a/>", (400, "event_invalid")),
        ({"Content_Type": "application/cloudevents-batch+json"}, b"[]", (415, "batch_not_supported")),
        ({"ce_id": "1"}, b"1", (400, "event_invalid")),
        ({"ce_specversion": "0.3", "ce_id": "1", "ce_source": "/a", "ce_type": "t"}, b"1", (400, "event_invalid")),
        ({"ce_specversion": "1.0", "ce_id": "%ff", "ce_source": "/a", "ce_type": "t"}, b"1", (400, "event_invalid")),
        ({"ce_dataref": "FAAS_PAYLOADS/once.x"}, b"1", (400, "event_invalid")),
        ({"Faas_Chunk_To": "faas.outcome.default.double.x"}, b"1", (400, "event_invalid")),
        ({"Faas_Invocation": "a" * 26}, b"1", (400, "event_invalid")),
        ({"Faas_Timeout": "soon"}, b"1", (400, "event_invalid")),
        ({"Content_Encoding": "gzip"}, b"1", (415, "unsupported_coding")),
        ({"ce_data": "x" * 8000, "ce_more": "y" * 8000, "ce_even": "z" * 800}, b"1", (431, "headers_too_large")),
    ],
)
async def test_an_event_that_no_function_could_be_given_is_refused_before_the_bus_has_it(
    door: Doors, headers: dict[str, str], body: bytes, expected: tuple[int, str], prefer: str
) -> None:
    """F21: stored, it would be a dead letter that its sender never hears of."""
    asked = {**headers, **({"Prefer": prefer} if prefer else {})}

    assert problem(await door.post("/invoke/default/double", body, **asked)) == expected
    assert await door.node.count("FAAS_DEAD", "faas.dead.default.double") == 0


# ---------------------------------------------------------------- who, and what else


async def test_an_answer_does_not_say_what_it_is_made_with(door: Doors) -> None:
    """A list of known holes goes by version."""
    answers = [await door.send("GET", path) for path in ("/healthz", "/nothing", "/readyz")]
    answers += [await door.post("/invoke/default/tokens", b'"a"', Content_Type=JSON, Accept="text/event-stream")]
    answers += [await door.post("/invoke/default/back", b"x" * 3_000_000)]

    assert {headers["server"] for _, headers, _ in answers} == {"faas"}


async def test_what_is_not_there_is_a_problem_document(door: Doors) -> None:
    """A client reads one shape for every error."""
    assert problem(await door.send("GET", "/nothing/here")) == (404, "not_found")
    assert problem(await door.send("GET", "/invoke/default/double")) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": origin} for origin in ("http://example.org", "null")),
        *({"Host": host} for host in ("example.org", "[", "[x]:80", "")),
        *({name: "203.0.113.7"} for name in ("X-Forwarded-For", "Forwarded", "Via")),
    ],
)
async def test_a_web_page_of_elsewhere_is_no_program_of_this_machine(door: Doors, headers: dict[str, str]) -> None:
    """A browser on the node's machine sends what any page tells it to, under whatever name resolves to 127.0.0.1; a proxy, what anybody does."""
    assert problem(await door.post("/invoke/default/double", b'{"n":1}', Content_Type=JSON, **headers)) == (403, "no_tenants")
