"""What a client may send and hold open: bodies, heads, slowness and connections are bounded, and whatever one does the node serves the others."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from doors import Doors, doors, problem

from faas.gateway.incoming import HEAD_BYTES

ENVIRON = {
    "FAAS_HTTP__MAX_BODY": "8MiB",
    "FAAS_HTTP__KEEP_ALIVE": "1s",
    "FAAS_HTTP__BODY_TIMEOUT": "1s",
    "FAAS_HTTP__MAX_CONNECTIONS": "400",
}
BINARY = "application/octet-stream"
INLINE = 2**20 - 4096 - 2 * HEAD_BYTES
"""The largest body that goes in one message of the bus."""


@pytest.fixture(scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with doors(tmp_path_factory.mktemp("limits"), environ=ENVIRON) as door:
        yield door


async def serves(door: Doors) -> bool:
    status, _, _ = await door.post("/invoke/default/double", b'{"n":1}', Content_Type="application/json")
    return status == 200


async def raw(door: Doors, *parts: bytes) -> bytes:
    """All that the node says to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection(*door.address)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(door: Doors, *lines: str, path: str = "/invoke/default/back") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", f"Host: {door.address[0]}", *lines, "", ""]).encode()


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("size", [INLINE - 1, INLINE, INLINE + 1, 2**20 - 4096, 2**20, 8 * 2**20])
@pytest.mark.parametrize("prefer", ["", "wait=9"])
async def test_a_body_of_any_size_that_is_allowed_goes_in_and_comes_out(door: Doors, size: int, prefer: str) -> None:
    """F19: around what the bus carries itself, with as many headers as may be, and far above it; whoever sends it need not know where that is."""
    body = os.urandom(size)
    headers = {"Content_Type": BINARY, "ce_long": "x" * 8000, "ce_longer": "y" * 7000, **({"Prefer": prefer} if prefer else {})}
    status, _, back = await door.post("/invoke/default/back", body, **headers)

    assert status == 200
    assert hashlib.sha256(back).digest() == hashlib.sha256(body[::-1]).digest()


@pytest.mark.parametrize("prefer", ["", "wait=9"])
@pytest.mark.parametrize(
    ("function", "size", "kind", "expected"),
    [
        ("back", 8 * 2**20 + 1, BINARY, (413, "payload_too_large")),
        ("small", 100 * 2**10 + 1, BINARY, (413, "payload_too_large")),
        ("small", 3 * 2**20, BINARY, (413, "payload_too_large")),
        ("back", 2 * 2**20, "application/cloudevents+json", (413, "payload_too_large")),
        ("grows", 1, "application/json", (500, "result_too_large")),
    ],
)
async def test_what_is_too_large_is_said_by_whoever_bounds_it_and_the_door_stays_open(
    door: Doors, function: str, size: int, kind: str, expected: tuple[int, str], prefer: str
) -> None:
    """F19: the node, the function, the bus."""
    headers = {"Content_Type": kind, **({"Prefer": prefer} if prefer else {})}

    assert problem(await door.post(f"/invoke/default/{function}", b"1" * size, **headers)) == expected
    assert await serves(door)


@pytest.mark.parametrize("prefer", ["", "respond-async"])
async def test_a_large_body_that_nobody_takes_leaves_nothing_in_the_bucket(door: Doors, prefer: str) -> None:
    """Uploads to functions that are not there would fill it for everybody."""
    before = await door.node.count("OBJ_FAAS_PAYLOADS", "$O.FAAS_PAYLOADS.C.>")
    headers = {"Content_Type": BINARY, **({"Prefer": prefer} if prefer else {})}

    assert problem(await door.post("/invoke/default/nosuch", b"x" * 2_000_000, **headers)) == (404, "unknown_function")
    assert await door.node.count("OBJ_FAAS_PAYLOADS", "$O.FAAS_PAYLOADS.C.>") <= before


async def test_an_event_that_comes_again_leaves_its_second_body_nowhere(door: Doors) -> None:
    """The first one is run, with its own; whoever sends again sends it whole."""
    event = {
        "ce_specversion": "1.0",
        "ce_id": "large-again",
        "ce_source": "/shop",
        "ce_type": "t",
        "Content_Type": BINARY,
        "Prefer": "wait=9",
    }
    first = await door.post("/invoke/default/back", b"x" * 2_000_000, **event)
    stored = await door.node.count("OBJ_FAAS_PAYLOADS", "$O.FAAS_PAYLOADS.C.>")
    second = await door.post("/invoke/default/back", b"x" * 2_000_000, **event)

    assert (first[0], second[0]) == (200, 200)
    assert first[1]["faas-invocation"] == second[1]["faas-invocation"]
    assert await door.node.count("OBJ_FAAS_PAYLOADS", "$O.FAAS_PAYLOADS.C.>") <= stored


async def test_a_body_in_chunks_goes_in_too(door: Doors) -> None:
    """Nobody says beforehand how much it is."""

    async def parts() -> AsyncIterator[bytes]:
        for n in range(30):
            yield bytes([n]) * 100_000

    async with door.http.post("/invoke/default/back", data=parts(), headers={"Content-Type": BINARY}) as answer:
        back = await answer.read()

    assert (answer.status, len(back), back[:1], back[-1:]) == (200, 3_000_000, b"\x1d", b"\x00")


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(door: Doors) -> None:
    """A client that asks first sends nothing; one that does not is told while it sends."""
    said = await raw(door, head(door, f"Content-Length: {9 * 2**20}", "Expect: 100-continue"))

    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in said
    assert b'"code":"payload_too_large"' in said


async def test_a_body_in_chunks_is_refused_once_it_is_too_large(door: Doors) -> None:
    """It would fill disk or memory."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(90):
            yield b"x" * 100_000

    async with door.http.post("/invoke/default/back", data=parts(), headers={"Content-Type": BINARY}) as answer:
        document = await answer.json(content_type="application/problem+json")

    assert (answer.status, document["code"]) == (413, "payload_too_large")
    assert await serves(door)


async def test_a_client_that_asks_whether_to_go_on_is_told_so(door: Doors) -> None:
    """curl does for every body above a megabyte, and waits a second for the answer."""
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(head(door, "Content-Length: 3", "Expect: 100-continue", f"Content-Type: {BINARY}"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    answer = await reader.readuntil(b"cba")
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.timeout(40)
@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 1", "Content-Encoding: identity", "Content-Encoding: gzip"],
        ["Content-Length: 1", "Content-Encoding: identity, br"],
        ["Transfer-Encoding: gzip, chunked"],
    ],
)
async def test_a_coding_of_the_body_that_is_said_last_is_refused_too(door: Doors, lines: list[str]) -> None:
    """Nobody here undoes it: the function would get bytes that its sender never meant."""
    body = b"1\r\n1\r\n0\r\n\r\n" if "Transfer" in lines[0] else b"1"
    said = await raw(door, head(door, "Content-Type: application/json", *lines, path="/invoke/default/double"), body)

    assert said.startswith(b"HTTP/1.1 415 ")
    assert b'"unsupported_coding"' in said


async def test_large_bodies_do_not_fill_the_memory_of_the_node(door: Doors) -> None:
    """Eight at once, each way, are 128 MiB; what the node holds of them does not grow with their number."""
    body = os.urandom(8 * 2**20)
    assert await serves(door)
    before_kb = _peak_kb(door)
    answers = await asyncio.gather(*(door.post("/invoke/default/back", body, Content_Type=BINARY) for _ in range(8)))

    assert [answer[0] for answer in answers] == [200] * 8
    assert all(answer[2] == body[::-1] for answer in answers)
    assert _peak_kb(door) - before_kb < 64 * 1024


def _peak_kb(door: Doors) -> int:
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{door.node.process.pid}/status").read_text())[0])


async def test_who_asks_for_the_head_of_a_large_result_gets_the_head_alone(door: Doors) -> None:
    """Whatever follows it on the connection is read as the next answer: a proxy would give a function's bytes to another client as that."""
    _, headers, _ = await door.post("/invoke/default/back", os.urandom(3_000_000), Content_Type=BINARY, Prefer="wait=9")
    asked = f"HEAD /invocations/{headers['faas-invocation']} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {BINARY}\r\n\r\n"
    said = await raw(door, asked.encode(), b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    first, second, body = said.split(b"\r\n\r\n")

    assert b"Content-Length: 3000000\r\n" in first
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b'{"status":"ok"}'


async def test_nothing_of_an_upload_is_left_behind(door: Doors) -> None:
    """Files of uploads have no names: a crash leaves none either."""
    await door.post("/invoke/default/back", b"x" * 3_000_000, Content_Type=BINARY)
    with pytest.raises(ConnectionResetError):
        await _broken_upload(door)

    assert list(Path(door.node.state, "http").iterdir()) == []


async def _broken_upload(door: Doors) -> None:
    _, writer = await asyncio.open_connection(*door.address)
    writer.write(head(door, "Content-Length: 4000000", f"Content-Type: {BINARY}") + b"x" * 3_000_000)
    await writer.drain()
    writer.transport.abort()
    await serves(door)
    raise ConnectionResetError


# ---------------------------------------------------------------- slowness, heads, connections


@pytest.mark.parametrize("begun", [b"", b"POST /invoke/default/back HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "])
async def test_a_head_that_does_not_come_is_not_waited_for(door: Doors, begun: bytes) -> None:
    """Slow-loris: a connection that sends a byte now and then, or none."""
    assert await raw(door, begun) == b""
    assert await serves(door)


async def test_a_body_that_drips_is_not_waited_for(door: Doors) -> None:
    """Each byte would buy its connection another while."""
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(head(door, "Content-Length: 1000", f"Content-Type: {BINARY}"))

    async def drip() -> None:
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.wait([reading], timeout=0.1)

    reading = asyncio.ensure_future(reader.read())
    dripping = asyncio.ensure_future(drip())
    said = await reading
    writer.close()
    await dripping

    assert said.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "lines",
    [
        ["X-A: " + "a" * 20_000],
        [f"X-{n}: {'a' * 4000}" for n in range(60)],
        [f"X-{n}: a" for n in range(1000)],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Transfer-Encoding: chunked", "Content-Length: 3"],
        ["Content-Length: -1"],
        ["X A: b"],
    ],
)
async def test_a_head_that_is_too_large_or_none_is_refused(door: Doors, lines: list[str]) -> None:
    """400 or 431, the connection closes, and nothing of it reached a function."""
    said = await raw(door, head(door, *lines))

    assert said.split(b" ")[1:2] in ([b"400"], [b"431"]), said[:200]
    assert await serves(door)


async def test_a_thousand_idle_connections_leave_room_for_one_that_asks(door: Doors) -> None:
    """Those go first that have been idle for longest; who asks is served."""
    idle = [await asyncio.open_connection(*door.address) for _ in range(1000)]
    try:
        assert await serves(door)
        assert await serves(door)
    finally:
        for _, writer in idle:
            writer.close()


async def test_a_connection_that_works_is_none_that_is_idle(door: Doors) -> None:
    """It is not the one that goes where there are too many."""
    asking = asyncio.ensure_future(door.post("/invoke/default/tokens", b'"a b c d"', Content_Type="application/json"))
    idle = [await asyncio.open_connection(*door.address) for _ in range(500)]
    try:
        status, _, body = await asking
        assert (status, body) == (200, b"abcd")
    finally:
        for _, writer in idle:
            writer.close()


async def test_a_hundred_thousand_bytes_that_are_no_http_end_their_connection(door: Doors) -> None:
    """Another protocol on this port, or noise."""
    said = await raw(door, os.urandom(100_000).replace(b"\n", b" "))

    assert said == b"" or said.startswith(b"HTTP/1.")
    assert problem(await door.send("GET", "/nothing")) == (404, "not_found")
