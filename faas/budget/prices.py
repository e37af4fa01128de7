"""What a usage record costs. Pure integer arithmetic: prices become pico-dollars an hour once, a cost is rounded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from faas.model import GpuUse

_PICO = Decimal(10) ** 12
_US_PER_HOUR = 3_600_000_000
_GIB = 2**30
_PPM = 1_000_000
_DENOMINATOR = 1000 * _US_PER_HOUR * _GIB * _PPM  # pico -> nano, and the units of the three addends

OVERHEAD_S = 0.25
"""What a reservation adds to the timeout: from the end of the clock to the worker's end."""


class PriceTable:
    """Prices of one version: US dollars for an hour of a core, a GiB, and a GPU by name."""

    def __init__(self, *, version: str, cpu_hour: float, gib_hour: float, gpu_hour: Mapping[str, float]) -> None:
        self.version = version
        self._cpu = _pico(cpu_hour)
        self._gib = _pico(gib_hour)
        self._gpu = {name: _pico(price) for name, price in gpu_hour.items()}

    def cost_nanousd(self, *, cpu_us: int, memory_byte_us: int, gpus: Iterable[GpuUse] = ()) -> int:
        """(cpu_us x cpu_hour + memory_byte_us / 2^30 x gib_hour + each GPU's us x share x gpu_hour) x 10^9 / 3.6 x 10^9, rounded half up."""
        numerator = cpu_us * self._cpu * _GIB * _PPM + memory_byte_us * self._gib * _PPM
        for gpu in gpus:
            numerator += gpu.us * gpu.share_ppm * self._gpu.get(gpu.name, self._gpu.get("default", 0)) * _GIB
        return (2 * numerator + _DENOMINATOR) // (2 * _DENOMINATOR)

    def reserved_nanousd(self, *, timeout_s: float, cpus: float, memory_bytes: int) -> int:
        """The worst case of one attempt: its whole timeout and OVERHEAD_S at all its CPUs and memory. No charge exceeds it."""
        time_us = round((timeout_s + OVERHEAD_S) * 1e6)
        return self.cost_nanousd(cpu_us=round(time_us * cpus), memory_byte_us=time_us * memory_bytes)


def _pico(dollars: float) -> int:
    return int((Decimal(str(dollars)) * _PICO).to_integral_value())
