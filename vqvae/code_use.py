"""How a codebook is used, from the histogram of its codes. Legend: K codes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class CodeUse(NamedTuple):
    """Scalars on the histogram's device.

    `codes_used` of K; `usage` in [0, 1]; `entropy` in bits a token; `perplexity` = 2^entropy, in [1, K].
    """

    codes_used: Tensor
    usage: Tensor
    entropy: Tensor
    perplexity: Tensor


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Histogram of the codes: indices of any shape -> (K,) int64."""
    return torch.bincount(indices.flatten(), minlength=codebook_size)


def code_use(counts: Tensor) -> CodeUse:
    """Of the histogram (K,); an empty one has perplexity 1."""
    p = counts.float() / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(p, p).sum() / math.log(2)
    used = (counts > 0).sum()
    return CodeUse(used.float(), used.float() / counts.numel(), entropy.clamp(min=0), entropy.clamp(min=0).exp2())
