"""Nearest code with a codebook of moving averages (https://arxiv.org/abs/1711.00937, appendix A.1).

Codes are low-dimensional and l2-normalised, which keeps a large codebook in use (https://arxiv.org/abs/2110.04627).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kernels.nearest import argmax_linear
from vqvae.quantizer import Quantized, Quantizer
from vqvae.ranks import from_first_rank, sum_over_ranks


class Standardise(nn.Module):
    """Each channel of (B, D, h, w) to mean 0 and variance 1, by moving averages of both or by those of this batch.

    The batch is that of all processes; nn.SyncBatchNorm can do this on GPUs only.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, z: Tensor, batch_statistics: bool) -> Tensor:
        mean, var = self._measure(z) if batch_statistics else (self.running_mean, self.running_var)
        return (z - mean[:, None, None]) * torch.rsqrt(var + self.eps)[:, None, None]

    def _measure(self, z: Tensor) -> tuple[Tensor, Tensor]:
        n = sum_over_ranks(torch.tensor(float(z[:, 0].numel()), device=z.device))
        mean = sum_over_ranks(z.sum(dim=(0, 2, 3))) / n
        var = sum_over_ranks((z - mean[:, None, None]).square().sum(dim=(0, 2, 3))) / n
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(var.detach(), self.momentum)
        return mean, var


class VectorQuantizer(Quantizer):
    """Gradients pass straight through to the encoder.

    The codebook starts at vectors of the first batch, and codes whose moving count falls below `restart_below` move to
    vectors of the current batch. It is the same in all processes of a run, learnt from the batches of all of them.

    Args:
        codebook_size: K.
        values_per_code: colour values for which a code stands; unused here, part of every quantizer's signature.
        codebook_dim: D.
        commitment: weight of |z_e - sg(code)|^2, averaged over positions and summed over D.
        decay: of the moving averages.
        restart_below: moving count (in vectors a batch) under which a code counts as dead.
    """

    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        codebook_size: int,
        values_per_code: int,
        *,
        codebook_dim: int = 16,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.05,
    ) -> None:
        super().__init__(codebook_size)
        if not (isinstance(codebook_dim, int) and codebook_dim >= 1):
            raise ValueError(f"codebook_dim is {codebook_dim}, expected a whole number of at least 1")
        if not commitment >= 0:
            raise ValueError(f"commitment is {commitment}, expected at least 0")
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, expected a number between 0 and 1")
        if not 0 <= restart_below < 1:
            raise ValueError(f"restart_below is {restart_below}, expected 0 to less than 1, at which a code restarts")
        self.in_channels = self.out_channels = codebook_dim
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        # Untrained encoders send every patch into nearly the same direction; on the unit sphere all would share a code.
        self.standardise = Standardise(codebook_dim)
        self.register_buffer("sums", F.normalize(torch.randn(codebook_size, codebook_dim), dim=1))
        self.register_buffer("counts", torch.zeros(codebook_size))

    @property
    def codebook(self) -> Tensor:
        """(K, D), of length 1: the directions of the sums, also of sums that a weight average made shorter."""
        return F.normalize(self.sums, dim=1)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        return rearrange(F.embedding(indices, self.codebook), "b h w d -> b d h w")

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return self._nearest(self._unit_vectors(z_e))

    def relax(self, z_e: Tensor) -> Quantized:
        return self._quantize(self._unit_vectors(z_e))

    def forward(self, z_e: Tensor) -> Quantized:
        if not self.training:
            return super().forward(z_e)
        z_e = self._unit_vectors(z_e, batch_statistics=True)
        vectors = rearrange(z_e.detach(), "b d h w -> (b h w) d")
        self._start(vectors)
        quantized = self._quantize(z_e)
        self._update(vectors, quantized.indices.flatten())
        return quantized

    def _unit_vectors(self, z_e: Tensor, batch_statistics: bool = False) -> Tensor:
        return F.normalize(self.standardise(z_e.float(), batch_statistics), dim=1)

    def _quantize(self, z_e: Tensor) -> Quantized:
        indices = self._nearest(z_e)
        codes = self.indices_to_codes(indices)
        commitment_loss = (z_e - codes).square().sum(dim=1).mean()
        z_q = z_e + (codes - z_e).detach()
        return Quantized(
            z_q, indices, self.commitment * commitment_loss, parts={"commitment": commitment_loss.detach()}
        )

    def _nearest(self, z_e: Tensor) -> Tensor:
        """Unit vectors (B, D, h, w) -> (B, h, w): of codes of length 1, the one with the largest product is nearest."""
        return argmax_linear(z_e.movedim(1, -1), self.codebook)

    def _sample(self, vectors: Tensor, n: int) -> Tensor:
        """n of the vectors (N, D), repeated only where there are fewer than n, and a little apart from one another."""
        order = torch.randperm(len(vectors), device=vectors.device)
        picked = vectors[order.repeat(-(-n // len(order)))[:n]]
        return from_first_rank(F.normalize(picked + 0.01 * torch.randn_like(picked), dim=1))

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.counts.any():
            return
        self.sums.copy_(self._sample(vectors, self.codebook_size))
        self.counts.fill_(1.0)

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor) -> None:
        batch_counts = torch.zeros_like(self.counts).index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        batch_sums = torch.zeros_like(self.sums).index_add_(0, indices, vectors)
        self.counts.lerp_(sum_over_ranks(batch_counts), 1 - self.decay)
        self.sums.lerp_(sum_over_ranks(batch_sums), 1 - self.decay)
        dead = self.counts < self.restart_below
        if n_dead := int(dead.sum()):  # the same in all processes, so all of them sample
            self.sums[dead] = self._sample(vectors, n_dead)
            self.counts[dead] = 1.0
