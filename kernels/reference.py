"""Attention written out: the oracle that tests and benchmarks hold every other implementation against.

softmax(scale * q k^T, over the keys the pattern allows) v, with the whole (T, T) score matrix in memory: slow on
purpose.

Legend: B batch, H heads, T sequence, D head dim.
"""

import math

import torch
from torch import Tensor

from kernels.patterns import Pattern, attention_mask


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
) -> Tensor:
    """Masked attention, computed in float32, or in float64 where the inputs are.

    Args:
        q, k, v: (B, H, T, D) with T = pattern.seq_len.
        scale: factor on the scores; None: 1 / sqrt(D).
        prefix_lengths: (B,) integers; image queries of sample b see only its first n text keys. None: all.

    Returns:
        (B, H, T, D) in the dtype of v.
    """
    compute_dtype = torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    positions = torch.arange(pattern.seq_len, device=q.device)
    mask = attention_mask(pattern, positions, positions, prefix_lengths)  # (B or 1, 1, T, T)

    with torch.autocast(q.device.type, enabled=False):
        scores = scale * q.to(compute_dtype) @ k.to(compute_dtype).transpose(-2, -1)  # (B, H, T, T)
        weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        return (weights @ v.to(compute_dtype)).to(v.dtype)
