"""Finite scalar quantization (https://arxiv.org/abs/2309.15505): a few numbers, each rounded to one of a few levels.

All combinations of levels are the codebook, so nothing is learnt and nothing can collapse.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from vqvae.quantizer import Quantized, Quantizer

PAPERS_LEVELS = ((8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5))
"""Table 1, for about 2^8, 2^10, 2^12, 2^14 and 2^16 codes."""

MAX_LEVELS = 1000
"""The bound reaches (1 + EPSILON) times the outermost level; with more levels it would round to one beyond it."""

EPSILON = 1e-3


class FSQ(Quantizer):
    """Each channel is bounded by a tanh and rounded; gradients pass straight through the rounding. There is no loss.

    An even number L of levels lies at -L/2..L/2-1 (with 0 among them, at which an untrained encoder starts), an odd one
    at -(L-1)/2..(L-1)/2; as codes they are divided by floor(L/2), so within [-1, 1]. The first channel counts fastest
    in the index.

    Args:
        codebook_size: K, the product of the levels.
        values_per_code: colour values for which a code stands; unused here, part of every quantizer's signature.
        levels: of each channel, D whole numbers of at least 3; by default those of the paper's table 1 with K codes.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, codebook_size: int, values_per_code: int, *, levels: Sequence[int] = ()) -> None:
        super().__init__(codebook_size)
        levels = _checked(levels or _papers_levels(codebook_size), codebook_size)
        self.in_channels = self.out_channels = len(levels)
        basis = list(accumulate(levels[:-1], mul, initial=1))
        self.register_buffer("levels", torch.tensor(levels)[:, None, None], persistent=False)  # (D, 1, 1)
        self.register_buffer("basis", torch.tensor(basis)[:, None, None], persistent=False)  # (D, 1, 1)

    def bound(self, z_e: Tensor) -> Tensor:
        """(B, D, h, w) -> the same, float32, between half a level's width beyond the outermost levels of each channel.

        The appendix's bound(); 0 stays 0.
        """
        half_range = (self.levels - 1) * (1 + EPSILON) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        shift = torch.atanh(offset / half_range)
        return torch.tanh(z_e.float() + shift) * half_range - offset

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        numbers = indices.unsqueeze(1) // self.basis % self.levels  # (B, D, h, w), 0..L-1
        half = self.levels // 2
        return (numbers - half) / half

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return self._indices(self.bound(z_e).round())

    def relax(self, z_e: Tensor) -> Quantized:
        bounded = self.bound(z_e)
        rounded = bounded.round()
        z_q = (bounded + (rounded - bounded).detach()) / (self.levels // 2)
        return Quantized(z_q, self._indices(rounded.detach()), z_q.new_zeros(()))

    def _indices(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.levels // 2) * self.basis).sum(dim=1)


def _papers_levels(codebook_size: int) -> tuple[int, ...]:
    by_size = {math.prod(levels): levels for levels in PAPERS_LEVELS}
    if codebook_size not in by_size:
        known = ", ".join(f"{size} codes {list(levels)}" for size, levels in by_size.items())
        raise ValueError(
            f"codebook_size is {codebook_size} and no levels are given: expected levels whose product is "
            f"{codebook_size}, or a codebook_size of the paper's ({known})"
        )
    return by_size[codebook_size]


def _checked(levels: Sequence[int], codebook_size: int) -> list[int]:
    if not all(isinstance(n, int) and 3 <= n <= MAX_LEVELS for n in levels):
        raise ValueError(
            f"levels is {list(levels)}, expected whole numbers from 3 to {MAX_LEVELS} (of 2 levels: lfq or bsq)"
        )
    if math.prod(levels) != codebook_size:
        raise ValueError(
            f"levels is {list(levels)} with product {math.prod(levels)}, expected the product to be codebook_size, "
            f"{codebook_size}"
        )
    return list(levels)
