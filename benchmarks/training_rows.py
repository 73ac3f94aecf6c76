"""One contestant of benchmarks/training.py, in the process that calls: timed, checked, set beside the matrix peak.

No speed on wrong gradients: those of ours, as the timed step makes them, are held against float64 with all logits
written out, and everyone's loss has to fall. That comes after the timing, so that it is not in the peak of memory, and
before anything is reported.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.ceilings import measure_ceilings
from benchmarks.isolated import PeakMemory
from benchmarks.prior_contestants import make_ours, n_parameters
from benchmarks.samplers import PEER_DTYPES
from benchmarks.timing import make_clock, time_in_turn
from benchmarks.trainers import TRAINERS, Case, Ours
from transformer.losses import prior_loss


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    case: Case
    repeats: int
    quick: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant: medians of the steps."""

    name: str
    dtype: str
    parameters: int
    tokens_per_s: float
    """Positions of captions and pictures."""
    step_s: float
    spread: float
    """Distance between the quartiles of the timed steps, over their median."""
    tflop: float
    """Of a step (trainers.py)."""
    peak_tflops: float
    """A second, of a large matrix product in this dtype, measured after the steps."""
    peak_gb: float | None
    """Of memory, weights and optimiser included."""
    losses: tuple[float, float]
    """At the first and the last step, all on one batch."""

    @property
    def mfu(self) -> float:
        return self.tflop / self.step_s / self.peak_tflops


class Errors(NamedTuple):
    """Relative ones; of gradients, the norm of the error over that of the exact ones."""

    loss: float
    gradients: float
    """All together."""
    worst: float
    """Of the parameter whose gradient is the most off."""


# Some three times what 8 layers show. In bfloat16 the gradients of the gains of heads are the worst: sums that nearly
# cancel.
TOLERANCES = {"float32": Errors(1e-5, 1e-5, 1e-5), "bfloat16": Errors(1e-3, 2e-2, 0.5)}


def measure(job: Job) -> tuple[Row, Errors | None]:
    """The row, and for ours the errors. Raises ValueError where these are too large, or the loss does not fall."""
    case, memory = job.case, PeakMemory(job.case.device)
    trainer = TRAINERS[job.name](case)
    clock = make_clock("events" if case.device.startswith("cuda") else "wall", case.device)
    losses = [trainer.step()]  # the warm-up: it compiles and makes the optimiser's state
    memory.restart()
    timing = time_in_turn({"": lambda: losses.append(trainer.step())}, clock, repeats=job.repeats, warmup=0)[""]
    peak = memory.read()
    first, last = losses[0].item(), losses[-1].item()
    if not last < first:  # NaN is not
        raise ValueError(f"the loss of {job.name} in {case.dtype} went from {first:.4g} to {last:.4g}")
    errors = checked(trainer) if isinstance(trainer, Ours) else None
    ceilings = measure_ceilings(case.device, PEER_DTYPES[case.dtype], clock, quick=job.quick)
    row = Row(
        name=job.name,
        dtype=case.dtype,
        parameters=n_parameters(trainer.model),
        tokens_per_s=1e3 * case.batch * case.sizes.config().seq_len / timing.ms,
        step_s=timing.ms / 1e3,
        spread=timing.spread,
        tflop=trainer.flops() / 1e12,
        peak_tflops=ceilings.flops / 1e12,
        peak_gb=None if peak is None else peak / 1e9,
        losses=(first, last),
    )
    return row, errors


def checked(trainer: Ours) -> Errors:
    found, allowed = errors_of(trainer), TOLERANCES[trainer.case.dtype]
    if not all(error <= most for error, most in zip(found, allowed, strict=True)):  # NaN is no less than anything
        raise ValueError(f"{trainer.case.dtype}: {found}, allowed {allowed}; nothing is reported")
    return found


def errors_of(trainer: Ours) -> Errors:
    """Of the loss and the gradients at the trainer's weights."""
    exact_loss, exact = exact_gradients(trainer)
    with trainer.case.autocast():
        loss = trainer.loss()
    loss.backward()
    pairs = list(zip((parameter.grad for parameter in trainer.model.parameters()), exact, strict=True))
    off = torch.stack([(g if found is None else found.double() - g).norm() for found, g in pairs])
    norms = torch.stack([g.norm() for _, g in pairs])
    trainer.optimizer.zero_grad(set_to_none=True)
    each = torch.where((off == 0) & (norms == 0), 0, off / norms)  # some have none, as pads that are not there
    return Errors(abs(loss.item() - exact_loss) / exact_loss, (off.norm() / norms.norm()).item(), each.max().item())


def exact_gradients(trainer: Ours) -> tuple[float, tuple[Tensor, ...]]:
    """The loss of all logits in float64 at the trainer's weights, and its gradients in the parameters' order."""
    prior = make_ours(trainer.case.sizes).to(trainer.case.device).double()
    prior.load_state_dict(trainer.model.state_dict())
    output = prior(*trainer.batch)
    loss = prior_loss(output.text_logits, output.image_logits, *trainer.batch).total
    return loss.item(), torch.autograd.grad(loss, list(prior.parameters()))
