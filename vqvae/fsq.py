"""Finite scalar quantization (https://arxiv.org/abs/2309.15505): a few numbers, each rounded to one of a few levels.

All combinations of levels are the codebook, so nothing is learnt and nothing can collapse.
"""

import math
from collections.abc import Sequence

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
        levels: of each channel, D whole numbers of at least 3; by default those of the paper's table 1 with K codes, or
            eights and fours where K is another power of 2.
    """

    def __init__(self, codebook_size: int, values_per_code: int, *, levels: Sequence[int] = ()) -> None:
        super().__init__(codebook_size)
        # No buffers: an average of weights (EMA) averages those too, and may round whole numbers to the next lower one.
        self.levels = _checked(levels or _usual_levels(codebook_size), codebook_size)
        self.in_channels = self.out_channels = len(self.levels)

    def bound(self, z_e: Tensor) -> Tensor:
        """(B, D, h, w) of any floating dtype -> the same in float32, between half a level beyond the outermost ones.

        The appendix's bound() with the margin and the shift of vector-quantize-pytorch, by which 0 stays 0.
        """
        channels = z_e.float().unbind(dim=1)
        return torch.stack([_bound(channel, n) for channel, n in zip(channels, self.levels, strict=True)], dim=1)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        numbers = []
        for n in self.levels:
            numbers.append(indices % n - n // 2)
            indices = indices // n
        return self._scale(torch.stack(numbers, dim=1))

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return self._indices(self.bound(z_e).round())

    def relax(self, z_e: Tensor) -> Quantized:
        bounded = self.bound(z_e)
        rounded = bounded.round()
        z_q = self._scale(bounded + (rounded - bounded).detach())
        return Quantized(z_q, self._indices(rounded.detach()), z_q.new_zeros(()))

    def _scale(self, numbers: Tensor) -> Tensor:
        return torch.stack([each / (n // 2) for each, n in zip(numbers.unbind(dim=1), self.levels, strict=True)], dim=1)

    def _indices(self, rounded: Tensor) -> Tensor:
        indices = torch.zeros_like(rounded[:, 0], dtype=torch.int64)
        rounded = rounded.nan_to_num()  # to some code: as a whole number, NaN is far outside
        for number, n in zip(reversed(rounded.long().unbind(dim=1)), reversed(self.levels), strict=True):
            indices = indices * n + (number + n // 2)
        return indices


def _bound(z: Tensor, n: int) -> Tensor:
    half_range = (n - 1) * (1 + EPSILON) / 2
    offset = 0.0 if n % 2 else 0.5
    return torch.tanh(z + math.atanh(offset / half_range)) * half_range - offset


def _usual_levels(codebook_size: int) -> tuple[int, ...]:
    by_size = {math.prod(levels): levels for levels in PAPERS_LEVELS}
    n_bits = codebook_size.bit_length() - 1
    if codebook_size == 2**n_bits and n_bits >= 2 and codebook_size not in by_size:
        n_fours = -n_bits % 3  # 2 bits each in the place of 3
        return (8,) * ((n_bits - 2 * n_fours) // 3) + (4,) * n_fours
    if codebook_size not in by_size:
        known = ", ".join(f"{size} codes {list(levels)}" for size, levels in by_size.items())
        raise ValueError(
            f"codebook_size is {codebook_size} and no levels are given: expected levels whose product is "
            f"{codebook_size}, a power of 2, or a codebook_size of the paper's ({known})"
        )
    return by_size[codebook_size]


def _checked(levels: Sequence[int], codebook_size: int) -> tuple[int, ...]:
    if not all(isinstance(n, int) and 3 <= n <= MAX_LEVELS for n in levels):
        raise ValueError(
            f"levels is {list(levels)}, expected whole numbers from 3 to {MAX_LEVELS} (of 2 levels: lfq or bsq)"
        )
    if math.prod(levels) != codebook_size:
        raise ValueError(
            f"levels is {list(levels)} with product {math.prod(levels)}, expected the product to be codebook_size, "
            f"{codebook_size}"
        )
    return tuple(levels)
