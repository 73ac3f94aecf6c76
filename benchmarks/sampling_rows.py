"""One contestant of benchmarks/sampling.py, in the process that calls: checked, timed, set beside the memory's rate."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.ceilings import measure_reads
from benchmarks.isolated import PeakMemory, give_back_freed
from benchmarks.prior_contestants import Sizes
from benchmarks.samplers import EAGER, Case, Draw, Ours, Sampler, line_up
from benchmarks.sampling_gate import agreement, check, in_float32
from benchmarks.timing import make_clock
from transformer.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    dtype: str
    sizes: Sizes
    batches: tuple[int, ...]
    device: str
    repeats: int
    quick: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant at one batch size: medians of the repeats."""

    name: str
    dtype: str
    batch: int
    tokens_per_s: float
    """Of all pictures, from the call to the last token."""
    total_s: float
    first_s: float
    """Until the first tokens were there."""
    ms_per_step: float
    """Between two tokens of a picture, after the first ones."""
    spread: float
    """Distance between the slowest and the fastest repeat, over the median."""
    estimated: bool
    gb_per_step: float | None
    """What a step must read; None where a step is a whole pass."""
    limit_gb_per_s: float
    """The memory's rate, measured after the draws."""
    peak_gb: float | None
    """Of memory, over what the process held before there was a model."""

    @property
    def gb_per_s(self) -> float | None:
        return None if self.gb_per_step is None else 1e3 * self.gb_per_step / self.ms_per_step

    @property
    def share(self) -> float | None:
        return None if self.gb_per_s is None else self.gb_per_s / self.limit_gb_per_s


class Gate(NamedTuple):
    """How tokens that were drawn agree with those of whole passes (sampling_gate.py)."""

    name: str
    dtype: str
    batch: int
    equal: float
    gap: float


def measure(job: Job) -> tuple[list[Row], list[Gate]]:
    """Rows of all batch sizes, smallest first, and how the tokens of ours agree with those of whole passes.

    Raises ValueError where they do not.
    """
    memory = PeakMemory(job.device)
    rows, gates = [], []
    for batch in sorted(job.batches):
        case = Case(sizes=job.sizes, batch=batch, dtype=job.dtype, device=job.device)
        of_case, agreed = measure_case(job, case, memory)
        rows += of_case
        gates += agreed
    clock = make_clock("events" if job.device.startswith("cuda") else "wall", job.device)
    limit = measure_reads(job.device, clock, quick=job.quick)
    return [Row(**row, limit_gb_per_s=limit / 1e9) for row in rows], gates


def measure_case(job: Job, case: Case, memory: PeakMemory) -> tuple[list[dict], list[Gate]]:
    """Rows but for the limit, and gates. No sampler outlives it: the memory of the next case's is its own."""
    torch.compiler.reset()  # or what was compiled for another batch size makes this one's shapes dynamic
    samplers = line_up(job.name, case)
    rows = timed(case, samplers, memory, job.repeats)
    ours = [(name, sampler) for name, sampler in samplers.items() if isinstance(sampler, Ours)]
    if job.name == EAGER and case.batch == min(job.batches):
        ours.append(("ours, greedily", greedy_draw(ours[0][1])))
    return rows, [gate(*each) for each in ours]


def greedy_draw(ours: Ours) -> Ours:
    """By the same prior after the same captions."""
    greedy = Ours(ours.case, ours.prior, SamplingConfig(temperature=0), ours.compile)
    greedy.draw()
    return greedy


def gate(name: str, ours: Ours) -> Gate:
    """Of the last draw."""
    found = agreement(in_float32(ours.prior), ours.batch, ours.drawn, ours.config)
    check(found, name, ours.case.dtype)
    return Gate(name, ours.case.dtype, ours.case.batch, *found)


def timed(case: Case, samplers: Mapping[str, Sampler], memory: PeakMemory, repeats: int) -> list[dict]:
    """All draws in turn, after a warm-up: rows but for the limit."""
    draws: dict[str, list[Draw]] = {name: [] for name in samplers}
    peaks: dict[str, list[int | None]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler.warm_up()
    give_back_freed()  # what compiling took
    for _ in range(repeats):
        for name, sampler in samplers.items():
            memory.restart()
            draws[name].append(sampler.draw())
            peaks[name].append(memory.read())
    return [
        summary(name, case, sampler, draws[name], max(peaks[name], default=None)) for name, sampler in samplers.items()
    ]


def summary(name: str, case: Case, sampler: Sampler, draws: Sequence[Draw], peak: int | None) -> dict:
    totals = [draw.total_s for draw in draws]
    total = statistics.median(totals)
    needed = sampler.bytes_per_step()
    return {
        "name": name,
        "dtype": case.dtype,
        "batch": case.batch,
        "tokens_per_s": case.batch * draws[0].tokens / total,
        "total_s": total,
        "first_s": statistics.median(draw.first_s for draw in draws),
        "ms_per_step": statistics.median(draw.ms_per_step for draw in draws),
        "spread": (max(totals) - min(totals)) / total,
        "estimated": sampler.estimated,
        "gb_per_step": needed and needed / 1e9,
        "peak_gb": peak and peak / 1e9,
    }
