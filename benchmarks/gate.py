"""No speed on wrong results: outputs and gradients of a contestant against the formula in float64.

What is timed is what is checked: the same call at the same shape, of which a few heads are held against the oracle. The
oracle is `attention_reference` taken a thousand queries at a time, so that no (T, T) matrix is needed.

Legend: B batch, H heads, T sequence, D head dim, N heads that are checked.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.contestants import Attend
from kernels.patterns import Pattern, attention_mask

# Largest error allowed: in half precision, a few times by how much PyTorch's own attention is off. Where one of n keys
# is missed, the error of random values is about 1 / sqrt(n): 0.06 under row at 32x32, 0.05 at 128x128.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}
TILE = 64  # positions whose error is taken together


class Inputs(NamedTuple):
    """(B, H, T, D) each; q, k and v require gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor

    @classmethod
    def random(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> "Inputs":
        q, k, v, do = (torch.randn(shape, dtype=dtype, device=device) for _ in range(4))
        return cls(*(x.requires_grad_() for x in (q, k, v)), do)


class Results(NamedTuple):
    o: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


class Errors(NamedTuple):
    """Largest over tiles of 64 positions: the norm of the error over that of the exact values."""

    output: float
    gradients: float


def results_of(attend: Attend, inputs: Inputs) -> Results:
    """The output as it is without gradients, which may come of another kernel, and the gradients."""
    with torch.no_grad():
        o = attend(*inputs[:3])
    return Results(o, *torch.autograd.grad(attend(*inputs[:3]), inputs[:3], inputs.do))


def first_and_last_head(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (N, T, D): the first head of the first sample and the last of the last."""
    heads = x.detach().flatten(0, 1)
    return heads[:1] if len(heads) == 1 else heads[[0, -1]]


def exact_results(inputs: Inputs, pattern: Pattern, block: int = 1024) -> Results:
    """The formula written out for the heads that are checked, (N, T, D) each, in float64."""
    q, k, v, do = (first_and_last_head(x).double() for x in inputs)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    positions = torch.arange(pattern.seq_len, device=q.device)
    outputs = []
    for queries in positions.split(block):
        mask = attention_mask(pattern, queries, positions)[0, 0]  # (queries, T)
        scores = q[:, queries] @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        o = scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ v
        o.backward(do[:, queries])  # adds to the gradients and drops the block's scores
        outputs.append(o.detach())
    return Results(torch.cat(outputs, dim=1), q.grad, k.grad, v.grad)


def errors(found: Results, exact: Results) -> Errors:
    """Of results (B, H, T, D) against exact ones of the heads that are checked."""
    of_each = [relative_error(first_and_last_head(x), y) for x, y in zip(found, exact, strict=True)]
    return Errors(of_each[0], float(torch.tensor(of_each[1:]).max()))  # which does not lose a NaN, as max() may


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Of (N, T, D) tensors. A whole tensor's norm would hide a wrong image behind the first few text positions, whose
    values are averages of few keys and therefore large."""
    ratio = (_tile_norms(found.double() - exact) / _tile_norms(exact)).max()
    return float(ratio)


def _tile_norms(x: Tensor) -> Tensor:
    squares = x.square().sum(dim=(0, 2))  # (T,)
    return pad(squares, (0, -len(squares) % TILE)).view(-1, TILE).sum(dim=1).sqrt()


def check(found: Errors, dtype: torch.dtype, pattern: Pattern) -> None:
    """Raises ValueError for errors beyond what the dtype allows."""
    tolerance = TOLERANCES[dtype]
    if not all(error <= tolerance for error in found):  # NaN is no less than anything
        raise ValueError(
            f"wrong under {pattern}: error {found.output:.1e} of the output, {found.gradients:.1e} of the gradients, "
            f"allowed {tolerance:.0e}; not timed"
        )
