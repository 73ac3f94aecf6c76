"""Entropies of soft assignments to codes, in nats: how sure of its code each vector is, how evenly all codes are used.

    sample entropy    mean over vectors of H(q(. | vector)), to be small
    batch entropy     H(mean over vectors of q(. | vector)), to be large, at most ln K

Legend: N vectors, K codes, D bits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.ranks import sum_over_ranks


def entropy(p: Tensor) -> Tensor:
    """H of each distribution along the last dimension, which sums to 1: (..., K) -> (...)."""
    return torch.special.entr(p.clamp(min=torch.finfo(p.dtype).tiny)).sum(dim=-1)  # at 0 the slope is infinite


def entropy_of_bits(logits: Tensor) -> Tensor:
    """H of a coin that falls on 1 with probability sigmoid(logit), elementwise, in [0, ln 2]."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def batch_mean(sums: Tensor, n: int, all_ranks: bool) -> Tensor:
    """sums / n, where `sums` is over this process's n vectors; over those of all processes with `all_ranks`."""
    if not all_ranks:
        return sums / n
    return sum_over_ranks(sums) / sum_over_ranks(torch.tensor(float(n), device=sums.device))


def batch_entropy_of_bits(logits: Tensor, group_bits: int, all_ranks: bool) -> Tensor:
    """The batch entropy of D independent bits a vector, logits (N, D).

    Exact over all 2^D codes if D is at most `group_bits`. Else it is the sum of the entropies of groups of that many
    bits, which is larger by what the groups have in common.

    Never writes N x 2^D probabilities: those of half a group's bits are enough, as a code's mean over the batch is the
    product of the two halves' matrices.
    """
    total = logits.new_zeros(())
    for group in logits.split(group_bits, dim=1):
        first, second = group.tensor_split([group.shape[1] // 2], dim=1)
        sums = _probabilities(first).t() @ _probabilities(second)  # (2^(D/2), 2^(D/2))
        total = total + entropy(batch_mean(sums.flatten(), len(logits), all_ranks))
    return total


def _probabilities(logits: Tensor) -> Tensor:
    """Of all values of D independent bits, the first of which counts most: (N, D) -> (N, 2^D)."""
    p = logits.new_ones(len(logits), 1)
    for logit in logits.unbind(dim=1):
        bit = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)], dim=1)  # (N, 2)
        p = (p.unsqueeze(2) * bit.unsqueeze(1)).flatten(1)
    return p
