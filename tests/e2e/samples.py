"""Pictures and sounds made without the libraries that the functions under test read them with, so that both cannot be wrong alike."""

from __future__ import annotations

import array
import io
import math
import struct
import wave
import zlib
from collections.abc import Callable


def png(width: int, height: int, bright: Callable[[float, float], bool]) -> bytes:
    """A grey PNG, white where `bright` holds and black elsewhere; x and y run from -1 to 1. Source: PNG specification, third edition."""
    rows = bytearray()
    for row in range(height):
        rows.append(0)  # filter: none
        rows += bytes(255 * bright(2 * (column + 0.5) / width - 1, 2 * (row + 0.5) / height - 1) for column in range(width))
    return packed_png(width, height, bytes(rows))


def packed_png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG that claims to have this size, whatever rows it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the head of a PNG says."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n"), data[:8]
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def hum(seconds: float, rate: int) -> bytes:
    """A WAV file with a tone of 120 Hz: loud, and nobody speaks."""
    samples = array.array("h", (round(12_000 * math.sin(math.tau * 120 * n / rate)) for n in range(round(seconds * rate))))
    out = io.BytesIO()
    with wave.open(out, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rate)
        recording.writeframes(samples.tobytes())
    return out.getvalue()
