"""Turns, medians and clocks, with time made up."""

import pytest

from benchmarks.timing import HostClock, Timing, make_clock, time_in_turn


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
