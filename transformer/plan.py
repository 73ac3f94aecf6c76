"""What training a prior takes: parameters, operations, and memory of each device, without having any of it.

    python -m transformer.plan --preset dalle-12b --strategy fsdp --devices 64 --batch_size 8

The strategies are train.py's: one device, `ddp` (a copy on each) and `fsdp` (a share on each). Weights, gradients,
moments and their average are counted exactly, the rest is found by running the model without memory (footprint.py) and
by how fully_shard works. Not counted are what CUDA and its libraries take for themselves and what lies between
the pieces: leave a tenth free. GB are 10^9 bytes. The exit code is 1 where it does not fit.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import nn

from transformer.config import BLOCKS, PRESETS, PriorConfig
from transformer.flops import forward_flops, training_flops
from transformer.footprint import footprint
from transformer.model import Prior

Strategy = Literal["single", "ddp", "fsdp"]
STRATEGIES = ("single", "ddp", "fsdp")
PRECISIONS = ("bf16-mixed", "32-true")
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Run:
    """What of a run its memory depends on. Raises ValueError for what cannot be."""

    prior: PriorConfig
    strategy: Strategy = "fsdp"
    devices: int = 1
    batch_size: int = 8
    """Of each device."""
    precision: str = "bf16-mixed"
    muon: bool = False
    """Muon on the blocks' matrices, which keeps one number a weight in the place of AdamW's two."""
    average: bool = True
    """Whether a moving average of the weights is kept on the devices."""

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}")
        for name in ("devices", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.strategy == "single" and self.devices != 1:
            raise ValueError(f"devices is {self.devices} with strategy single, expected 1")


class Memory(NamedTuple):
    """Bytes of one device; with fsdp, of one that has the largest share."""

    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int  # fsdp: weights and gradients that are whole for a while, and what they are sent from
    casts: int  # the blocks' weights in bf16, where they are not gathered in it
    activations: int
    passing: int


def memory(run: Run) -> Memory:
    prior = meta_prior(run.prior)
    spread, mixed = run.strategy == "fsdp", run.precision == "bf16-mixed"
    shares = {name: FLOAT * _share(p.shape, run.devices if spread else 1) for name, p in prior.named_parameters()}
    matrices = _matrices(prior) if run.muon else set()
    weights, used = sum(shares.values()), footprint(run.prior, run.batch_size, mixed)
    return Memory(
        weights=weights,
        gradients=weights,
        moments=sum((1 if name in matrices else 2) * share for name, share in shares.items()),
        average=weights if run.average else 0,
        gathered=_gathered(prior, mixed) if spread else 0,
        casts=0 if spread else used.casts,
        activations=used.kept,
        passing=used.passing,
    )


def meta_prior(config: PriorConfig) -> Prior:
    with torch.device("meta"):
        return Prior(config)


def _share(shape: torch.Size, devices: int) -> int:
    """Numbers that the device with most of a tensor has: whole rows."""
    return -(-shape[0] // devices) * shape[1:].numel()


def _matrices(prior: Prior) -> set[str]:
    """Names of what Muon takes, see `make_optimizer`."""
    found = {f"{name}.weight" for name, module in prior.named_modules() if isinstance(module, nn.Linear)}
    return {name for name in found if name.startswith("blocks.")}


def _gathered(prior: Prior, mixed: bool) -> int:
    """What is no block's, whole with its gradients. Of blocks, the weights of the one at work and of the next, as they
    arrived (once more) and the gradients of one, as they were made and as float32, in which they are summed."""
    block = sum(parameter.numel() for parameter in prior.blocks[0].parameters())
    rest = sum(parameter.numel() for parameter in prior.parameters()) - len(prior.blocks) * block
    each = 2 if mixed else FLOAT
    return 2 * FLOAT * rest + (3 * each + each + FLOAT) * block


def report(run: Run, memory_gb: float) -> tuple[str, bool]:
    """The table, and whether it fits."""
    found = memory(run)
    other = replace(run, prior=replace(run.prior, checkpoint_activations=not run.prior.checkpoint_activations))
    total, ways = sum(found), {True: "with", False: "without"}
    fits = total <= memory_gb * 1e9
    lines = [*_sizes(run), "", f"memory of each of {run.devices} devices, {run.strategy}, {run.precision}, GB"]
    lines += [f"  {name:<12}{size / 1e9:>10.2f}" for name, size in found._asdict().items() if size]
    lines.append(f"  {'in all':<12}{total / 1e9:>10.2f}   of {memory_gb:g}: {'fits' if fits else 'does not fit'}")
    for each, its in ((run, found), (other, memory(other))):
        kept = its.activations + its.passing
        way = ways[each.prior.checkpoint_activations]
        lines.append(f"  {way} activation checkpoints {kept / 1e9:.2f} of activations, {sum(its) / 1e9:.2f} in all")
    if run.strategy == "fsdp":
        whole = memory(replace(run, strategy="single", devices=1))
        start, saved = whole.weights / 1e9, (whole.weights + whole.average + whole.moments) / 1e9
        lines.append(f"and of its machine: {start:.1f} a process at the start, {saved:.1f} the first for a checkpoint")
    return "\n".join(lines), fits


def _sizes(run: Run) -> list[str]:
    prior, forward, training = meta_prior(run.prior), forward_flops(run.prior), training_flops(run.prior)
    pictures = run.devices * run.batch_size
    step = pictures * (training.picture + (run.prior.text_len - 1) * training.text_token)
    shares = ", ".join(
        f"{name.replace('_', ' ')} {part / sum(forward):.1%}" for name, part in forward._asdict().items()
    )
    again = sum(forward[:3]) * pictures if run.prior.checkpoint_activations else 0
    return [
        f"parameters        {sum(parameter.numel() for parameter in prior.parameters()):,}",
        f"pictures a step   {pictures:,} of {run.prior.seq_len:,} positions",
        f"FLOPs a step      {step:.4g}, {step / run.devices:.4g} on each device ({shares})",
        *([f"  done again      {again:.4g} because of activation checkpoints"] if again else []),
    ]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m transformer.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, required=True)
    for name in ("n_layer", "n_head", "n_embd"):
        parser.add_argument(f"--{name}", type=int, help="in the place of the preset's")
    parser.add_argument("--block", choices=BLOCKS, help="in the place of the preset's")
    parser.add_argument("--strategy", choices=STRATEGIES, default="single")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=8, help="pictures of each device")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16-mixed")
    parser.add_argument("--checkpoint_activations", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--muon", action="store_true", help="Muon on the blocks' matrices")
    parser.add_argument("--average", action=argparse.BooleanOptionalAction, default=True, help="of the weights (EMA)")
    parser.add_argument("--memory_gb", type=float, default=80, help="of a device")
    parser.add_argument("--text_len", type=int, default=256)
    parser.add_argument("--text_vocab_size", type=int, default=16_384)
    parser.add_argument("--codebook_size", type=int, default=8192)
    parser.add_argument("--grid_size", type=int, nargs=2, default=(32, 32), metavar=("ROWS", "COLUMNS"))
    return parser.parse_args(argv)


OF_PRIOR = ("preset", "n_layer", "n_head", "n_embd", "block", "checkpoint_activations")
OF_PRIOR += ("text_len", "text_vocab_size", "codebook_size", "grid_size")


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(parse_args(argv))
    memory_gb = args.pop("memory_gb")
    try:
        prior = PriorConfig(**{name: args.pop(name) for name in OF_PRIOR})
        text, fits = report(Run(prior=prior, **args), memory_gb)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
