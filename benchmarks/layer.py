"""One layer of benchmarks/attention.py: who is admitted, how long each takes, how much memory ours needs.

Legend: B batch, H heads, T sequence, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import cli
from benchmarks.ceilings import Ceilings
from benchmarks.contestants import OURS, Attend, Contestant
from benchmarks.gate import TOLERANCES, Errors, Inputs, check, errors, exact_results, results_of
from benchmarks.goals import Row
from benchmarks.memory import peak_bytes
from benchmarks.roof import PASSES, count, matrix_flops, roof_ms
from benchmarks.timing import Clock, Run, Timing, time_in_turn
from kernels.patterns import Pattern

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}
TIMED = ("fwd", "fwd+bwd")

Admitted = dict[str, tuple[Attend, Errors]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer."""

    pattern: Pattern
    batch: int
    heads: int
    head_dim: int
    dtype: str
    device: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.pattern.seq_len, self.head_dim

    @property
    def key(self) -> dict[str, Any]:
        """What names it in the results."""
        names = {"kind": self.pattern.kind, "text_len": self.pattern.text_len, "grid": self.pattern.height}
        return names | {"head_dim": self.head_dim, "dtype": self.dtype}

    def inputs(self) -> Inputs:
        return Inputs.random(self.shape, DTYPES[self.dtype], self.device)


def admit(inputs: Inputs, contestants: Sequence[Contestant]) -> tuple[Admitted, dict[str, str]]:
    """Who computes what they should, with their errors, and why the others are absent.

    Raises:
        ValueError: our own results are wrong; nothing is timed then.
    """
    admitted, absent, exact = {}, {}, {}
    for name, pattern, make in contestants:
        if pattern not in exact:
            exact[pattern] = exact_results(inputs, pattern)
        try:
            attend = make()
            found = errors(results_of(attend, inputs), exact[pattern])
            check(found, inputs.q.dtype, pattern)
        except Exception as error:  # a competitor's failure, of whatever kind, is a result
            if name == OURS:
                raise
            absent[name] = cli.one_line(error)
        else:
            admitted[name] = attend, found
    return admitted, absent


def measure(
    case: Case, inputs: Inputs, admitted: Admitted, clock: Clock, ceilings: Ceilings, repeats: int
) -> list[Row]:
    """Rows of forward, backward and forward with backward."""
    timed = {}
    for pass_ in TIMED:
        runs = {name: run_of(pass_, attend, inputs) for name, (attend, _) in admitted.items()}
        timed[pass_] = time_in_turn(runs, clock, repeats=repeats)
    return make_rows(case, timed, admitted[OURS][1], ceilings)


def run_of(pass_: str, attend: Attend, inputs: Inputs) -> Run:
    """One pass, "fwd" or "fwd+bwd", whose results are dropped."""
    q, k, v, do = inputs

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v)

    def forward_backward() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), do)

    return {"fwd": forward, "fwd+bwd": forward_backward}[pass_]


def memory_ratio(attend: Attend, inputs: Inputs, pass_: str) -> float:
    """Peak bytes of a pass over the bytes of q, k, v and o.

    Inputs count as well: q, k and v, and backward the output's gradient; so 1 is the least forward, 2 with backward.
    """
    held = {"fwd": 3, "fwd+bwd": 4}[pass_]
    tensor_bytes = inputs.q.numel() * inputs.q.element_size()
    peak = peak_bytes(run_of(pass_, attend, inputs), inputs.q.device)
    return (held * tensor_bytes + peak) / (4 * tensor_bytes)


def make_rows(case: Case, timed: dict[str, dict[str, Timing]], found: Errors, ceilings: Ceilings) -> list[Row]:
    ms = {pass_: {name: timing.ms for name, timing in timings.items()} for pass_, timings in timed.items()}
    ms["bwd"] = {name: both - ms["fwd"][name] for name, both in ms["fwd+bwd"].items()}
    pairs = case.batch * case.heads * count(case.pattern, "raster").pairs
    itemsize = DTYPES[case.dtype].itemsize
    return [
        Row(
            **case.key,
            batch=case.batch,
            heads=case.heads,
            pass_=pass_,
            ms=ms[pass_],
            spread={name: timing.spread for name, timing in timed.get(pass_, {}).items()},
            tflops=matrix_flops(pairs, case.head_dim, pass_) / ms[pass_][OURS] / 1e9,
            share=roof_ms(case.pattern, case.shape, itemsize, pass_, ceilings) / ms[pass_][OURS],
            error=found.output,
            gradient_error=found.gradients,
        )
        for pass_ in PASSES
    ]
