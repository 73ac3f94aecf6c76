"""Where codes come from: a codebook's start at vectors of the encoder, and new places for dead codes.

A codebook that is learnt along with the vectors collapses unless it starts among them, as k-means makes it do
(https://arxiv.org/abs/2107.03312), and its unused codes move to where vectors are (https://arxiv.org/abs/2005.00341).

Legend: N vectors of this process, D codebook_dim. With `unit`, vectors and codes have length 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.kmeans import kmeans
from vqvae.ranks import RowsOfAllRanks, from_first_rank

APART = 0.01
"""Spread of what sets codes at the same vector apart: of each number of a vector of length 1, else in its spread."""


@torch.no_grad()
def codes_at_start(vectors: Tensor, n: int, kmeans_steps: int, unit: bool) -> Tensor:
    """n codes (n, D) for all processes' vectors (N, D): their centres after so many steps of k-means, without steps
    some of the vectors."""
    rows = RowsOfAllRanks(vectors)
    if not kmeans_steps or len(rows) <= n:  # the centres of fewer vectors than codes are the vectors
        return sample_codes(vectors, n, unit)
    everything = rows[torch.arange(len(rows), device=vectors.device)]
    return from_first_rank(kmeans(everything, n, kmeans_steps, spherical=unit))


@torch.no_grad()
def sample_codes(vectors: Tensor, n: int, unit: bool) -> Tensor:
    """n of all processes' vectors (N, D), repeated only where there are fewer, a little apart from one another."""
    rows = RowsOfAllRanks(vectors)
    order = torch.randperm(len(rows), device=vectors.device)
    picked = rows[from_first_rank(order.repeat(-(-n // len(order)))[:n])]
    shift = APART * torch.randn_like(picked)
    codes = F.normalize(picked + shift, dim=1) if unit else picked + shift * picked.std(dim=0, correction=0)
    return from_first_rank(codes)
