"""Durations and sizes as people write them ("250ms", "30s", "7d"; "512MiB"), parsed once at the edge. Knows nothing of where they are used."""

import math
import re

_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")
_LIMIT = 2.0**62
"""Seconds and bytes above this fit no clock and no disk, and no integer that other programs read."""


class Duration(float):
    """Seconds. Written "250ms", "30s", "5m", "6h" or "7d"."""

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Raises ValueError with what would be right."""
        match = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None or match[2] not in _DURATION_S:
            raise ValueError(f'{_shown(text)} is no duration; write it like "250ms", "30s", "5m", "6h" or "7d"')
        return cls(_bounded(text, float(match[1]) * _DURATION_S[match[2]]))


class Size(int):
    """Bytes. Written "512MiB", "18GiB"."""

    @classmethod
    def parse(cls, text: object) -> "Size":
        """Raises ValueError with what would be right."""
        match = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None or match[2] not in _SIZE_BYTES:
            raise ValueError(f'{_shown(text)} is no size; write it like "64KiB", "512MiB" or "18GiB"')
        return cls(_bounded(text, float(match[1]) * _SIZE_BYTES[match[2]]))


def _bounded(text: object, value: float) -> float:
    if value > _LIMIT:
        raise ValueError(f"{_shown(text)} is more than anything here can count")
    return value


def _shown(value: object) -> str:
    """As it was written, and not a page of it."""
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."


def decode_unit(type: type, value: object) -> object:
    """The `dec_hook` of msgspec for structs that hold a Duration or a Size."""
    if type is Duration or type is Size:
        return type.parse(value)
    raise NotImplementedError(f"no unit {type}")


def format_duration(seconds: float) -> str:
    """The shortest of the forms that people write: 0.0123 -> "12.3ms", 2.5 -> "2.5s", 90 -> "1.5m"."""
    for unit, factor in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds >= factor:
            return f"{_short(seconds / factor)}{unit}"
    return f"{_short(seconds * 1000)}ms"


def format_size(size: float) -> str:
    """300_000_000 -> "286 MiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _SIZE_BYTES[unit]:
            return f"{_short(size / _SIZE_BYTES[unit])} {unit}"
    return f"{int(size)} B"


def format_above(size_bytes: int, limit_bytes: int) -> tuple[str, str]:
    """A size and the limit that it is above; to the byte where they would look the same: "64 MiB" of "64 MiB" explains nothing."""
    size, limit = format_size(size_bytes), format_size(limit_bytes)
    return (size, limit) if size != limit else (f"{size_bytes:,} B", f"{limit_bytes:,} B")


def format_cost(nanousd: int) -> str:
    """Three digits that say something, and never an exponent: 0 -> "$0", 12 -> "$0.000000012", 1_234_567 -> "$0.00123", 2_500_000_000 -> "$2.50"."""
    if not nanousd:
        return "$0"
    places = min(9, max(2, 2 - math.floor(math.log10(abs(nanousd) / 1e9))))
    return f"{'-' if nanousd < 0 else ''}${abs(nanousd) / 1e9:.{places}f}"


def _short(number: float) -> str:
    """Three digits, and never an exponent: 0.0123, 12.3, 1023."""
    return f"{number:.0f}" if number >= 999.5 else f"{number:.3g}"
