"""How fast this machine multiplies matrices and moves bytes: the roof of whatever does no more than either.

The rates are those of a large matrix product and of a large copy, measured in the run that is held against them. What
only reads, as drawing a token does, is held against the fastest of several ways to read a large buffer.
"""

from typing import NamedTuple

import torch

from benchmarks.timing import Clock, time_in_turn


class Work(NamedTuple):
    flops: float
    bytes: float


class Ceilings(NamedTuple):
    """Measured rates, a second."""

    flops: float
    bytes: float

    def ms(self, work: Work) -> float:
        return 1e3 * max(work.flops / self.flops, work.bytes / self.bytes)


def measure_ceilings(device: str, dtype: torch.dtype, clock: Clock, *, quick: bool = False) -> Ceilings:
    """Rates of a large matrix product of random numbers and of a large copy (bytes read and written)."""
    side, copied = (8192, 2**30) if device.startswith("cuda") else (2048, 2**27)
    if quick:
        side, copied = side // 4, copied // 8
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    runs = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = {name: timing.ms / 1e3 for name, timing in time_in_turn(runs, clock, repeats=9).items()}
    return Ceilings(2 * side**3 / times["product"], 2 * copied / times["copy"])


def measure_reads(device: str, clock: Clock, *, quick: bool = False) -> float:
    """Bytes a second: the best time of the fastest of a sum, a maximum and a product with a vector, of 512 MB each.

    On a CUDA device the rate of a large copy, bytes read and written, of which a sum falls short.
    """
    n_bytes = 2**29 // (32 if quick else 1)
    buffer = torch.ones(n_bytes // 4, device=device)
    if device.startswith("cuda"):
        target = torch.empty_like(buffer)
        runs, moved = {"copy": lambda: target.copy_(buffer)}, 2 * n_bytes
    else:
        matrix, vector = buffer.view(2**11, -1), torch.ones(n_bytes // 2**13)
        runs, moved = {"sum": buffer.sum, "max": buffer.max, "product": lambda: matrix @ vector}, n_bytes
    return moved / min(clock(run) for run in [*runs.values()] * 9) * 1e3
