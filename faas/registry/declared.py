"""A function's declaration as it is in effect, every default filled in, in the words of `function.toml`. Reads and checks nothing."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from faas.model import FunctionSpec
from faas.units import Duration, Size

_DURATION_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_SIZE_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def in_effect(spec: FunctionSpec) -> dict[str, object]:
    """Keys and values as people write them: "30s", "2GiB". Of `env` the names alone: a value may be what its author should have made a secret."""
    found = _table(spec)
    found["env"] = sorted(spec.env)
    found["trigger"] = [{key: value for key, value in _table(trigger).items() if value not in ("", None)} for trigger in spec.triggers]
    return found


def _table(struct: Struct) -> dict[str, object]:
    return {field.encode_name: _written(getattr(struct, field.name)) for field in msgspec.structs.fields(struct)}


def _written(value: object) -> object:
    if isinstance(value, Duration):
        return _duration(value)
    if isinstance(value, Size):
        return next((f"{value // factor}{unit}" for unit, factor in _SIZE_UNITS if value and value % factor == 0), f"{int(value)}B")
    if isinstance(value, Struct):
        return _table(value)
    if isinstance(value, tuple | list):
        return [_written(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _written(item) for key, item in value.items()}
    return value


def _duration(seconds: float) -> str:
    """Exactly, in the largest unit that divides it: 5400 -> "90m", 0.25 -> "250ms"."""
    for unit, factor in _DURATION_UNITS:
        if seconds >= factor and seconds % factor == 0:
            return f"{int(seconds) // factor}{unit}"
    return f"{seconds * 1000:g}ms"
