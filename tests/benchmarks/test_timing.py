"""Turns, medians and clocks, with time made up."""

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import DeviceClock, HostClock, Timing, make_clock, time_in_turn


def test_all_run_in_turn_and_warm_up_does_not_count():
    seen = []
    durations = {"a": iter([99, 99, 5, 1, 3]), "b": iter([99, 99, 20, 10, 30])}

    def clock(run):
        run()
        return next(durations[seen[-1]])

    runs = {name: lambda name=name: seen.append(name) for name in durations}
    timings = time_in_turn(runs, clock, repeats=3)
    assert seen == ["a", "b"] * 5
    assert timings == {"a": Timing(3, pytest.approx(2 / 3)), "b": Timing(20, pytest.approx(1 / 2))}


def test_one_repeat_has_no_spread():
    assert time_in_turn({"a": lambda: None}, lambda run: 4.0, repeats=1, warmup=0) == {"a": Timing(4.0, 0.0)}


def test_a_host_clock_counts_milliseconds_of_the_run_alone():
    now = [100.0]

    def run():
        now[0] += 0.25

    assert HostClock(lambda: now[0])(run) == pytest.approx(250)


@pytest.mark.parametrize(("name", "device"), [("cpu", "cuda"), ("wall", "cuda:1"), ("events", "cpu")])
def test_a_clock_that_cannot_see_the_work_is_refused(name, device):
    with pytest.raises(ValueError, match=f"--clock {name} cannot time work on {device}"):
        make_clock(name, device)


def test_a_device_clock_flushes_first_and_waits_for_the_end(monkeypatch):
    seen = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            seen.append("record")

        def synchronize(self):
            seen.append("synchronize")

        def elapsed_time(self, end):
            return 1.5

    monkeypatch.setattr(timing, "FLUSH_BYTES", 1000)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = DeviceClock("cpu")
    clock.flushed.fill_(1)
    assert clock(lambda: seen.append(f"run, {int(clock.flushed.sum())} left")) == 1.5
    assert seen == ["record", "run, 0 left", "record", "synchronize"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_clock_sees_the_work_on_the_device():
    x = torch.randn(4096, 4096, device="cuda")
    clock = make_clock("events", "cuda")
    times = time_in_turn({"one": lambda: x @ x, "four": lambda: [x @ x for _ in range(4)]}, clock, repeats=9)
    assert 2 < times["four"].ms / times["one"].ms < 8
