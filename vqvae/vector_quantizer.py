"""Nearest code out of a learnt codebook (https://arxiv.org/abs/1711.00937), of moving averages or by gradient.

Codes are low-dimensional and l2-normalised, which keeps a large codebook in use (https://arxiv.org/abs/2110.04627),
unless that is switched off.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from kernels.nearest import argmax_linear, nearest_code
from vqvae.codebook import codes_at_start, sample_codes
from vqvae.quantizer import Quantized, Quantizer
from vqvae.ranks import sum_over_ranks
from vqvae.rotation import rotate_to
from vqvae.standardise import Standardise

LEAST_COUNT = 1e-6  # moving count under which an unused code no longer decays


class VectorQuantizer(Quantizer):
    """Gradients pass straight through to the encoder, or turned (`rotate`).

    The codebook starts at vectors of the first batch, or at their k-means, and codes whose moving count falls below
    `restart_below` move to vectors of the current batch. It is the same in all processes of a run, learnt from the
    batches of all of them.

    Args:
        codebook_size: K.
        values_per_code: colour values for which a code stands; unused here, part of every quantizer's signature.
        codebook_dim: D.
        commitment: weight of |z_e - sg(code)|^2, averaged over positions and summed over D.
        decay: of the moving averages.
        restart_below: moving count (in vectors a batch) under which a code counts as dead.
        ema: codes are moving averages of their vectors (the paper's appendix A.1); else they are parameters, drawn to
            their vectors by |sg(z_e) - code|^2 (its equation 3), averaged and summed as above.
        normalise: vectors and codes have length 1.
        standardise: each channel is brought to mean 0 and variance 1 first.
        kmeans_steps: Lloyd's iterations on the first batch, 0 for none.
        rotate: the gradient that passes to the encoder is turned with the vectors onto their codes (rotation.py).
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
        ema: bool = True,
        normalise: bool = True,
        standardise: bool = True,
        kmeans_steps: int = 0,
        rotate: bool = False,
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
        switches = {"ema": ema, "normalise": normalise, "standardise": standardise, "rotate": rotate}
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value}, expected true or false")
        if not (type(kmeans_steps) is int and kmeans_steps >= 0):
            raise ValueError(f"kmeans_steps is {kmeans_steps}, expected a whole number of at least 0")
        self.in_channels = self.out_channels = codebook_dim
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        self.ema, self.normalise, self.kmeans_steps, self.rotate = ema, normalise, kmeans_steps, rotate
        # Untrained encoders send every patch into nearly the same direction; on the unit sphere all would share a code.
        self.standardise = Standardise(codebook_dim) if standardise else None
        codes = F.normalize(torch.randn(codebook_size, codebook_dim), dim=1)
        if ema:
            self.register_buffer("sums", codes)
        else:
            self.embedding = nn.Parameter(codes)
        self.register_buffer("counts", torch.zeros(codebook_size))  # all 0 until the codebook has started

    @property
    def codebook(self) -> Tensor:
        """(K, D). Normalised, sums are directions, also those that a weight average made shorter; else sum over count.

        A code that has no count is where it was put.
        """
        return self._at_length(self._codes_of_any_length())

    def _codes_of_any_length(self) -> Tensor:
        if not self.ema:
            return self.embedding
        if self.normalise:
            return self.sums
        return self.sums / torch.where(self.counts > 0, self.counts, 1.0)[:, None]

    def _at_length(self, vectors: Tensor, dim: int = 1) -> Tensor:
        """Length 1 along a dimension, where that is asked for."""
        return F.normalize(vectors, dim=dim) if self.normalise else vectors

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        # Looked up first: the gradient of a length needs the vectors as they were, and dead codes of the table restart.
        codes = self._at_length(F.embedding(indices, self._codes_of_any_length()), dim=-1)
        return rearrange(codes, "b h w d -> b d h w")

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return self._nearest(self._placed(z_e))

    def relax(self, z_e: Tensor) -> Quantized:
        return self._quantize(self._placed(z_e))

    def forward(self, z_e: Tensor) -> Quantized:
        if not self.training:
            return super().forward(z_e)
        z_e = self._placed(z_e, batch_statistics=True)
        vectors = rearrange(z_e.detach(), "b d h w -> (b h w) d")
        self._start(vectors)
        quantized = self._quantize(z_e)
        self._update(vectors, quantized.indices.flatten())
        return quantized

    def _placed(self, z_e: Tensor, batch_statistics: bool = False) -> Tensor:
        """z_e (B, D, h, w) of any floating dtype where its codes are: float32."""
        z_e = z_e.float()
        return self._at_length(z_e if self.standardise is None else self.standardise(z_e, batch_statistics))

    def _quantize(self, z_e: Tensor) -> Quantized:
        indices = self._nearest(z_e)
        codes = self.indices_to_codes(indices)
        commitment_loss = (z_e - codes.detach()).square().sum(dim=1).mean()
        loss = self.commitment * commitment_loss
        if not self.ema:
            loss = loss + (z_e.detach() - codes).square().sum(dim=1).mean()
        z_q = rotate_to(z_e, codes) if self.rotate else z_e + (codes - z_e).detach()
        return Quantized(z_q, indices, loss, parts={"commitment": commitment_loss.detach()})

    @torch.no_grad()
    def _nearest(self, z_e: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w). Of codes of length 1, the one with the largest product is nearest."""
        find = argmax_linear if self.normalise else nearest_code
        return find(z_e.movedim(1, -1), self.codebook)

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.counts.any():
            return
        self._learnt.copy_(codes_at_start(vectors, self.codebook_size, self.kmeans_steps, self.normalise))
        self.counts.fill_(1.0)

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor) -> None:
        batch_counts = torch.zeros_like(self.counts).index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        batch_counts = sum_over_ranks(batch_counts)
        # Idle for thousands of updates a code would end in float32's smallest numbers, and then in none.
        share = torch.where((batch_counts > 0) | (self.counts > LEAST_COUNT), 1 - self.decay, 0.0)
        self.counts.lerp_(batch_counts, share)
        if self.ema:
            batch_sums = torch.zeros_like(self.sums).index_add_(0, indices, vectors)
            self.sums.lerp_(sum_over_ranks(batch_sums), share[:, None])
        dead = self.counts < self.restart_below
        if n_dead := int(dead.sum()):  # the same in all processes, so all of them sample
            self._learnt[dead] = sample_codes(vectors, n_dead, self.normalise)
            self.counts[dead] = 1.0

    @property
    def _learnt(self) -> Tensor:
        """(K, D), where a code of count 1 is the code itself."""
        return self.sums if self.ema else self.embedding
