"""The cost of a record."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from faas.budget.prices import PriceTable
from faas.model import GpuUse

TABLE = PriceTable(version="2026-11", cpu_hour=0.04, gib_hour=0.005, gpu_hour={"H200": 4.0, "default": 2.0})
HOUR_US = 3_600_000_000


def test_an_hour_of_each_costs_its_price() -> None:
    """The units: microseconds, byte-microseconds, parts per million; nano-dollars out."""
    assert TABLE.cost_nanousd(cpu_us=HOUR_US, memory_byte_us=0) == 40_000_000
    assert TABLE.cost_nanousd(cpu_us=0, memory_byte_us=2**30 * HOUR_US) == 5_000_000
    half = GpuUse(uuid="u", name="H200", share_ppm=500_000, us=HOUR_US)
    assert TABLE.cost_nanousd(cpu_us=0, memory_byte_us=0, gpus=[half]) == 2_000_000_000


def test_a_gpu_without_a_price_of_its_own_has_the_default() -> None:
    """A new card must not be free."""
    gpu = GpuUse(uuid="u", name="B300", share_ppm=1_000_000, us=HOUR_US)

    assert TABLE.cost_nanousd(cpu_us=0, memory_byte_us=0, gpus=[gpu]) == 2_000_000_000


@given(cpu_us=st.integers(0, 10**12), memory_byte_us=st.integers(0, 10**24), gpu_us=st.integers(0, 10**12), share_ppm=st.integers(0, 10**6))
def test_the_cost_is_the_formula_of_the_contract_rounded_once(cpu_us: int, memory_byte_us: int, gpu_us: int, share_ppm: int) -> None:
    """Anyone can compute it again from the record alone."""
    exact = (
        Fraction(cpu_us) * Fraction("0.04") + Fraction(memory_byte_us, 2**30) * Fraction("0.005") + Fraction(gpu_us * share_ppm, 10**6) * 4
    ) * Fraction(10**9, 3_600_000_000)
    gpu = GpuUse(uuid="u", name="H200", share_ppm=share_ppm, us=gpu_us)

    assert abs(TABLE.cost_nanousd(cpu_us=cpu_us, memory_byte_us=memory_byte_us, gpus=[gpu]) - exact) <= Fraction(1, 2)


@given(timeout_s=st.floats(0.001, 10**5), cpus=st.floats(0.1, 64), memory_bytes=st.integers(1, 2**40), used=st.floats(0, 1))
def test_a_reservation_covers_everything_within_timeout_cpus_and_memory(
    timeout_s: float, cpus: float, memory_bytes: int, used: float
) -> None:
    """What is reserved before an attempt bounds what it can cost."""
    run_us = int(timeout_s * 1e6 * used)
    cost = TABLE.cost_nanousd(cpu_us=int(run_us * cpus), memory_byte_us=int(memory_bytes * used) * run_us)

    assert cost <= TABLE.reserved_nanousd(timeout_s=timeout_s, cpus=cpus, memory_bytes=memory_bytes)
