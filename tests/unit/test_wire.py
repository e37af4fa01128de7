"""Framing: what the two ends of a worker's socket accept, and what they refuse before it costs anything."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.worker import wire


def invoke(data: bytes) -> wire.Invoke:
    return wire.Invoke(invocation_id="i", attempt=1, remaining_s=1.0, id="e", source="", data=data)


def spilled_body(frame: bytes, directory: Path) -> bytes:
    (body,) = wire.FrameReader().feed(frame)
    message = wire.decode_host(body)
    assert isinstance(message, wire.Spilled)
    return wire.read_spilled(message, str(directory), 10 * 2**20)


@given(sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=8), cut=st.integers(1, 700))
def test_frames_come_out_whole_however_the_stream_is_cut(sizes: list[int], cut: int) -> None:
    """A stream socket keeps no boundaries; a reader that relies on them works until the first busy day."""
    messages = [invoke(b"x" * size) for size in sizes]
    stream = b"".join(map(wire.encode, messages))
    reader = wire.FrameReader()

    bodies = [body for at in range(0, len(stream), cut) for body in reader.feed(stream[at : at + cut])]

    assert [wire.decode_host(body) for body in bodies] == messages


@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused_in_the_protocols_own_words(garbage: bytes) -> None:
    """Any other exception would escape the connection and end the event loop's callback instead of the worker."""
    for decode in (wire.decode_host, wire.decode_sandbox):
        try:
            decode(garbage)
        except wire.WireError:
            pass


@pytest.mark.parametrize("length", [wire.FRAME_LIMIT_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_above_the_limit_is_refused_before_anything_else_is_read(length: int) -> None:
    """Four bytes of a hostile handler must not make the node reserve four gigabytes."""
    with pytest.raises(wire.WireError, match="limit"):
        list(wire.FrameReader().feed(struct.pack(">I", length)))


def test_the_longest_frame_is_taken() -> None:
    """The limit itself is allowed, or the largest inline message could not be sent."""
    frame = struct.pack(">I", wire.FRAME_LIMIT_BYTES) + bytes(wire.FRAME_LIMIT_BYTES)

    assert [len(body) for body in wire.FrameReader().feed(frame)] == [wire.FRAME_LIMIT_BYTES]


def test_deep_nesting_is_refused() -> None:
    """msgpack that nests a hundred thousand arrays must not overflow the decoder's stack."""
    with pytest.raises(wire.WireError):
        wire.decode_sandbox(b"\x91" * 100_000)


@pytest.mark.parametrize("size", [0, 100, wire.INLINE_BYTES - 500])
def test_a_short_message_stays_in_its_frame(size: int, tmp_path: Path) -> None:
    """A file for each small message would double the cost of the hot path."""
    frame = wire.encode(invoke(b"x" * size), str(tmp_path), "1")

    assert list(tmp_path.iterdir()) == []
    assert wire.decode_host(frame[4:]) == invoke(b"x" * size)


def test_a_long_message_goes_by_a_file_that_is_gone_once_read(tmp_path: Path) -> None:
    """A body that stays behind fills the disk of a node that runs for months."""
    message = invoke(os.urandom(3 * 2**20))
    frame = wire.encode(message, str(tmp_path), "1")
    body = spilled_body(frame, tmp_path)

    assert len(frame) < 200
    assert wire.decode_host(body) == message
    assert list(tmp_path.iterdir()) == []


def test_a_body_can_only_be_read_by_its_owner(tmp_path: Path) -> None:
    """It is a payload, on a disk that others may use."""
    wire.encode(invoke(b"x" * 100_000), str(tmp_path), "1")
    (file,) = tmp_path.iterdir()

    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["../secret", "spill-/../../secret", "secret", "", "spill-missing", "spill-\0"])
def test_only_a_bare_spill_name_is_read(name: str, tmp_path: Path) -> None:
    """The name comes from a sandbox: with it a handler could have the node read, and delete, any file."""
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"1234")
    (inside / "secret").write_bytes(b"1234")
    with pytest.raises(wire.WireError):
        wire.read_spilled(wire.Spilled(file=name, size=4), str(inside), 100)

    assert (tmp_path / "secret").exists()
    assert (inside / "secret").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A spilled file that is a link to /etc/shadow would be sent out as somebody's result."""
    (tmp_path / "secret").write_bytes(b"1234")
    (tmp_path / "spill-1").symlink_to(tmp_path / "secret")

    with pytest.raises(wire.WireError):
        wire.read_spilled(wire.Spilled(file="spill-1", size=4), str(tmp_path), 100)


def test_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    """Opening one for reading waits for a writer; a node that waits there serves nobody."""
    os.mkfifo(tmp_path / "spill-1")

    with pytest.raises(wire.WireError):
        wire.read_spilled(wire.Spilled(file="spill-1", size=4), str(tmp_path), 100)


@pytest.mark.parametrize(("announced", "limit"), [(3, 100), (5, 100), (4, 3), (-2, 100)])
def test_a_size_that_is_untrue_or_above_the_limit_is_refused(announced: int, limit: int, tmp_path: Path) -> None:
    """The announced size is what was checked against the limit, so it must be the size that is read."""
    (tmp_path / "spill-1").write_bytes(b"1234")
    with pytest.raises(wire.WireError):
        wire.read_spilled(wire.Spilled(file="spill-1", size=announced), str(tmp_path), limit)
