"""The bytes of every message between a node and its sandboxes, pinned. A node may meet a sandbox of the version before it."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from faas.worker import wire

GOLDEN = Path(__file__).parent / "golden"

HOST: tuple[wire.HostMessage, ...] = (
    wire.Spawn(sandbox="s-1", directory="/state/run/s-1"),
    wire.Fork(worker="w-1"),
    wire.Load(
        function="double",
        tenant="default",
        version="0123456789abcdef",
        handler="handler:handle",
        files=(wire.File("handler.py", b"def handle(event):\n    return event\n"), wire.File("data/\u00e9.bin", b"\x00\xff")),
        tags={"team": "vision"},
        result_limit_bytes=67108864,
        overlay="/state/environments/0123/packages",
        env={"MODEL_SIZE": "small"},
        mounts={"model": "/state/mounts/0123"},
    ),
    wire.Invoke(
        invocation_id="abcdefghijklmnopqrstuvwxyz",
        attempt=2,
        remaining_s=29.5,
        id="e-1",
        source="/shop",
        event_type="image.uploaded",
        subject="cat.png",
        time="2026-01-02T03:04:05Z",
        datacontenttype="application/json",
        dataschema="https://example.org/schema",
        extensions={"traceparent": "00-00000000000000000000000000000001-0000000000000001-01"},
        data=b'{"n": 21}',
        stream=True,
    ),
    wire.Close(),
    wire.Spilled(file="spill-w-1-h1", size=70000),
)
SANDBOX: tuple[wire.SandboxMessage, ...] = (
    wire.Hello(role="template", id="t-1", python="3.11.7", threads=1, isolated=True, preload_us=1500000),
    wire.Broken(id="w-1", detail="the zygote has 2 threads"),
    wire.Exited(worker="w-1", code=-9, cpu_us=1234, memory_peak_bytes=20971520),
    wire.Loaded(
        load_us=5000, cpu_us=4000, memory_peak_bytes=20971520, input_schema='{"type": "integer"}', output_schema='{"type": "string"}'
    ),
    wire.LoadFailed(detail="ValueError: no", traceback="Traceback\n", load_us=5000, cpu_us=4000, memory_peak_bytes=20971520),
    wire.Log(stream="log", level="warning", logger="app", text="one\ntwo", at=1795300000.25),
    wire.Chunk(data=b"tok", content_type="text/plain"),
    wire.Emit(subject="images.done", id="i.1.0123456789abcdef", data=b"{}", content_type="application/json"),
    wire.Metered(meters={"tokens": 7}),
    wire.Result(body=b'{"n2":42}', content_type="application/json", run_us=90, cpu_us=80, memory_peak_bytes=20971520, meters={"tokens": 9}),
    wire.Failed(
        reason="error",
        detail="ValueError: negative",
        traceback="Traceback\n",
        retry_after_s=1.5,
        run_us=90,
        cpu_us=80,
        memory_peak_bytes=20971520,
    ),
    wire.Spilled(file="spill-w-1-w1", size=70000),
)
CASES = [pytest.param(message, wire.decode_host, id=f"host-{type(message).__name__.lower()}") for message in HOST] + [
    pytest.param(message, wire.decode_sandbox, id=f"sandbox-{type(message).__name__.lower()}") for message in SANDBOX
]


@pytest.mark.parametrize(("message", "decode"), CASES)
def test_a_message_is_written_as_it_always_was(
    message: wire.HostMessage | wire.SandboxMessage, decode: object, request: pytest.FixtureRequest
) -> None:
    """A sandbox that was started before an upgrade of the node still speaks the old bytes."""
    golden = (GOLDEN / f"{request.node.callspec.id}.bin").read_bytes()

    assert wire.encode(message) == golden


@pytest.mark.parametrize(("message", "decode"), CASES)
def test_old_bytes_are_read_as_the_message_that_they_were(
    message: wire.HostMessage | wire.SandboxMessage, decode: typing.Callable[[bytes], object], request: pytest.FixtureRequest
) -> None:
    """Reading is the other half: a renamed field would decode to its default without a word."""
    golden = (GOLDEN / f"{request.node.callspec.id}.bin").read_bytes()

    assert [decode(body) for body in wire.FrameReader().feed(golden)] == [message]


def test_every_message_is_pinned() -> None:
    """A message without golden bytes is one that can change unseen."""
    assert {type(message) for message in HOST} == set(typing.get_args(wire.HostMessage))
    assert {type(message) for message in SANDBOX} == set(typing.get_args(wire.SandboxMessage))
