"""One contestant of benchmarks/sampling.py, in the process that calls: checked, timed, set beside the memory's rate."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.ceilings import measure_reads
from benchmarks.isolated import PeakMemory
from benchmarks.prior_contestants import Sizes
from benchmarks.samplers import OURS, Case, Draw, Ours, Sampler, line_up, sample_ours
from benchmarks.sampling_gate import Agreement, agreement, check
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


def measure(job: Job) -> tuple[list[Row], dict[int, Agreement]]:
    """Rows of all batch sizes, smallest first, and for ours how greedy tokens agree with those of whole passes.

    Raises ValueError where they do not.
    """
    memory = PeakMemory(job.device)
    rows, gates = [], {}
    for batch in sorted(job.batches):
        torch.compiler.reset()  # or what was compiled for another batch size makes this one's shapes dynamic
        case = Case(sizes=job.sizes, batch=batch, dtype=job.dtype, device=job.device)
        samplers = line_up(job.name, case)
        if job.name == OURS:
            gates[batch] = gate(samplers[OURS])
        rows += timed(case, samplers, memory, job.repeats)
    clock = make_clock("events" if job.device.startswith("cuda") else "wall", job.device)
    limit = measure_reads(job.device, clock, quick=job.quick)
    return [Row(**row, limit_gb_per_s=limit / 1e9) for row in rows], gates


def gate(ours: Ours) -> Agreement:
    found = agreement(ours.prior, ours.batch, sample_ours(ours.prior, ours.batch, SamplingConfig(temperature=0)))
    check(found, ours.case.dtype)
    return found


def timed(case: Case, samplers: dict[str, Sampler], memory: PeakMemory, repeats: int) -> list[dict]:
    """All draws in turn, after a warm-up: rows but for the limit."""
    draws: dict[str, list[Draw]] = {name: [] for name in samplers}
    peaks: dict[str, list[int | None]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler.warm_up()
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
