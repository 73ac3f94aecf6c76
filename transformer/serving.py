"""A prior's weights as decoding reads them best: float32, or bfloat16 or int8 with everything else as it was.

A step of decoding multiplies each weight matrix by one or a few vectors, so its time is that of reading the weights,
and half or a quarter of the bytes is half or a quarter of the time: of both where a CPU's step is compiled, of bfloat16
on a GPU. Elsewhere products are those of weights widened first, which takes longer than to read float32.

Weight-only quantisation: activations, norms, biases, embeddings and all sums stay float32, so that a picture is the
same in any batch whatever the weights; what attention takes and gives is as wide as its cache (`cache_dtype`). int8 has
one scale a row, the largest magnitude / 127 (absmax, as LLM.int8(), https://arxiv.org/abs/2208.07339, section 2, has it
for vectors).

Shapes: N outputs, K inputs of a layer.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.step import computed_once
from transformer.model import Prior

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS = ("float32", "bfloat16", "int8")
FEW_ROWS = 8
"""Up to so many vectors a CPU multiplies one after the other while a row of the matrix is at hand."""
GROUPED_ROWS = 24
"""Up to so many, a CPU's compiled step takes FEW_ROWS at a time of narrow weights, which it reads as often: with more,
to widen them for a library's product takes no longer."""


class ServingLinear(nn.Module):
    """y = x W^T + bias of a trained linear layer, for decoding: (..., K) -> (..., N) in x's dtype. No gradients."""

    def __init__(self, linear: nn.Linear, weights: Weights) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = None
        if weights == "int8":
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
            weight, scale = (weight / scale).round().to(torch.int8), scale[:, 0]
        elif weights == "bfloat16":
            weight = weight.bfloat16()
        self.register_buffer("weight", weight)  # (N, K)
        self.register_buffer("scale", scale)  # (N,)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = _product(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)
        y = y if self.scale is None else y * self.scale
        return y if self.bias is None else y + self.bias


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(rows, K) and (N, K) -> (rows, N), x W^T: sums in x's dtype of x as it is, so that no row depends on the others
    by more than the order of a sum."""
    rows, narrow = len(x), weight.dtype in (torch.bfloat16, torch.int8)
    if x.device.type == "cpu" and rows <= FEW_ROWS:
        return _few_rows(x, weight)
    if x.device.type == "cpu" and narrow and rows <= GROUPED_ROWS and torch.compiler.is_compiling():
        return torch.cat([_few_rows(group, weight) for group in x.split(FEW_ROWS)])
    if x.is_cuda and narrow and x.dtype == torch.float32:
        return _by_tensor_cores(x, weight.bfloat16())  # which every int8 is
    return F.linear(x, weight.to(x.dtype))


def _few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """The libraries' products of so few rows take up to three times as long as reading the weights does
    (docs/log.md)."""
    if torch.compiler.is_compiling():
        # Sums that a compiler takes into one loop over the weights, each row of which it reads once for all of x.
        return torch.stack([(weight * row).sum(dim=-1) for row in computed_once(x).unbind()])
    if weight.dtype != x.dtype:
        return F.linear(x, weight.to(x.dtype))
    if len(x) == 1:  # of two, the same library makes a product at the memory's speed
        x = x.repeat(2, 1)
        return (weight @ x.T).T[:1]
    return (weight @ x.T).T


def _by_tensor_cores(x: Tensor, weight: Tensor) -> Tensor:
    """Of a float32 x, which three bfloat16 numbers add up to: three times the rows, by one reading of the weights."""
    parts = []
    for _ in range(3):
        parts.append(x.bfloat16())
        x = x - parts[-1]
    return torch.mm(torch.cat(parts), weight.T, out_dtype=torch.float32).unflatten(0, (3, -1)).sum(dim=0)


def for_decoding(prior: Prior, weights: Weights = "float32") -> Prior:
    """The prior itself, in evaluation mode, its blocks and image head with ServingLinear layers from now on.

    It can no longer be trained, nor saved unless its weights are float32.

    Raises ValueError for weights that are not among WEIGHTS.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights are {weights!r}, expected one of {', '.join(WEIGHTS)}")
    for module in [prior, *prior.blocks.modules()]:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not prior.text_head:
                setattr(module, name, ServingLinear(child, weights))
    return prior.eval()


def cache_dtype(prior: Prior) -> torch.dtype | None:
    """Of a cache that fits the weights: bfloat16 where these are narrower than activations. None: the activations'.

    The weights alone decide, so that a picture does not depend on how its steps are run.
    """
    return torch.bfloat16 if prior.image_head.weight.dtype in (torch.bfloat16, torch.int8) else None
