"""Rates that are measured, and the times that they make of work."""

import pytest
import torch

from benchmarks.ceilings import Ceilings, Work, measure_ceilings, measure_reads
from benchmarks.timing import make_clock


def test_the_longer_of_two_times_counts():
    ceilings = Ceilings(flops=2e9, bytes=1e9)
    assert ceilings.ms(Work(flops=4e6, bytes=1e6)) == pytest.approx(2)
    assert ceilings.ms(Work(flops=4e6, bytes=3e6)) == pytest.approx(3)


def test_ceilings_are_rates_a_second():
    """By a clock that runs each once and says that it took 2 ms."""

    def clock(run):
        run()
        return 2.0

    found = measure_ceilings("cpu", torch.float32, clock, quick=True)
    assert found == pytest.approx((2 * 512**3 / 2e-3, 2 * 2**24 / 2e-3))
    assert measure_ceilings("cpu", torch.bfloat16, make_clock("wall", "cpu"), quick=True).flops > 0


def test_of_the_ways_to_read_the_best_time_counts():
    """By a clock that says 3, 2, 4 ms, then ever more."""
    times = iter([3.0, 2.0, 4.0, *range(5, 100)])

    def clock(run):
        run()
        return next(times)

    assert measure_reads("cpu", clock, quick=True) == pytest.approx(2**24 / 2e-3)
