"""Clocks for one run of something, and the timing of several things in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Run = Callable[[], object]
Clock = Callable[[Run], float]  # runs it once, returns milliseconds

FLUSH_BYTES = 2**28  # more than any GPU's second-level cache holds
HEAD_STARTS = 8  # fills of as many bytes each; together almost a millisecond on a GPU


class Timing(NamedTuple):
    ms: float
    """Median of the runs."""
    spread: float
    """Distance between the quartiles, over the median: differences below it are noise."""


def time_in_turn(runs: Mapping[str, Run], clock: Clock, *, repeats: int, warmup: int = 2) -> dict[str, Timing]:
    """Rounds in which each runs once, so that whatever else the machine does hits all alike; the first do not count."""
    rounds = [[clock(run) for run in runs.values()] for _ in range(warmup + repeats)]
    return {name: _summary(times) for name, times in zip(runs, zip(*rounds[warmup:], strict=True), strict=True)}


def _summary(times: tuple[float, ...]) -> Timing:
    median = statistics.median(times)
    if len(times) < 2:
        return Timing(median, 0.0)
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, (third - first) / median)


def make_clock(name: str, device: str) -> Clock:
    """ "wall" or "cpu" (only what this process computes, for busy machines), or "events" of a CUDA device.

    Raises:
        ValueError: a clock that cannot see the device's work.
    """
    if (name == "events") != device.startswith("cuda"):
        raise ValueError(f"--clock {name} cannot time work on {device}")
    return (
        DeviceClock(device)
        if name == "events"
        else HostClock({"wall": time.perf_counter, "cpu": time.process_time}[name])
    )


class HostClock:
    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read

    def __call__(self, run: Run) -> float:
        start = self.read()
        run()
        return 1e3 * (self.read() - start)


class DeviceClock:
    """Events around the run. Before it, fills of a large buffer empty the second-level cache of what the last run left,
    and give the host time to queue the run's kernels, so that none of them waits for its launch."""

    def __init__(self, device: str) -> None:
        self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(HEAD_STARTS):
            self.flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
