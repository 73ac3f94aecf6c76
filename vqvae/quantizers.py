"""Quantizers behind one contract: z_e in, codes out; the rest of the model never asks which one it holds.

    forward(z_e) -> Quantized       training mode: what is trained through; eval mode: the hard codes
    relax(z_e) -> Quantized         as in training mode, without touching any state
    indices_to_codes(indices)       the codes the decoder was trained on
    anneal(step) -> dict            moves the schedules; returns their values to log
    in_channels, out_channels       what the encoder must give, what the decoder gets

Legend: B batch, K codebook, D codebook_dim, h w token grid.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqvae.losses import kl_to_uniform
from vqvae.schedules import cosine


@dataclass(frozen=True)
class Quantized:
    """z_q (B, out_channels, h, w); indices (B, h, w) int64; loss: scalar to add to the reconstruction loss.

    `logits` (B, K, h, w) where the quantizer has them; `parts`: named scalars to log.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    logits: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """Base of the quantizers."""

    in_channels: int
    out_channels: int

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, out_channels, h, w)."""
        raise NotImplementedError

    def hard_indices(self, z_e: Tensor) -> Tensor:
        """z_e (B, in_channels, h, w) -> (B, h, w) int64, without noise."""
        raise NotImplementedError

    def relax(self, z_e: Tensor) -> Quantized:
        """What training puts through the decoder; changes no state."""
        raise NotImplementedError

    def forward(self, z_e: Tensor) -> Quantized:
        relaxed = self.relax(z_e)
        if self.training:
            return relaxed
        codes = self.indices_to_codes(relaxed.indices)
        return Quantized(codes, relaxed.indices, relaxed.loss, relaxed.logits, relaxed.parts)

    def anneal(self, step: int) -> dict[str, float]:
        """Sets the schedules to optimiser step `step`; returns {name: value}."""
        return {}


class Gumbel(Quantizer):
    """The paper's relaxation (https://arxiv.org/abs/2102.12092, section 2.1 and appendix A.2).

    Gumbel-softmax over the codebook, soft in the forward and in the backward pass. The loss is beta * KL to the uniform
    prior, taken from the raw logits and divided, like the reconstruction, by the picture's number of colour values:
    beta / values_per_code on the KL averaged over the positions (6.6 / 192 in the paper).

    Args:
        codebook_size: K.
        values_per_code: colour values for which a code stands, 3 f^2.
        tau_start, tau_end, tau_steps: the relaxation's temperature, cosine over tau_steps updates, then constant.
        beta, beta_steps: weight of the KL, cosine from 0 over beta_steps updates, then constant.
    """

    def __init__(
        self,
        codebook_size: int,
        values_per_code: int,
        *,
        tau_start: float = 1.0,
        tau_end: float = 1 / 16,
        tau_steps: int = 150_000,
        beta: float = 6.6,
        beta_steps: int = 5_000,
    ) -> None:
        super().__init__(codebook_size)
        if not 0 < tau_end <= tau_start:
            raise ValueError(f"tau_end is {tau_end} and tau_start {tau_start}, expected 0 < tau_end <= tau_start")
        self.in_channels = self.out_channels = codebook_size
        self.values_per_code = values_per_code
        self.tau_start, self.tau_end, self.tau_steps = tau_start, tau_end, tau_steps
        self.beta_end, self.beta_steps = beta, beta_steps
        self.anneal(0)

    def anneal(self, step: int) -> dict[str, float]:
        self.tau = cosine(step, self.tau_start, self.tau_end, self.tau_steps)
        self.beta = cosine(step, 0.0, self.beta_end, self.beta_steps)
        return {"tau": self.tau, "beta": self.beta}

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return z_e.argmax(dim=1)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        codes = torch.zeros(indices.shape[0], self.codebook_size, *indices.shape[1:], device=indices.device)
        return codes.scatter_(1, indices.unsqueeze(1), 1.0)  # (B, K, h, w)

    def relax(self, z_e: Tensor) -> Quantized:
        logits = z_e.float()  # (B, K, h, w)
        z_q = F.gumbel_softmax(logits, tau=self.tau, dim=1)
        kl = kl_to_uniform(logits).mean()
        loss = self.beta / self.values_per_code * kl
        return Quantized(z_q, self.hard_indices(logits), loss, logits, {"kl": kl.detach()})


class VectorQuantizer(Quantizer):
    """Nearest code with a codebook of moving averages (https://arxiv.org/abs/1711.00937, appendix A.1).

    Codes are low-dimensional and l2-normalised, which keeps a large codebook in use (https://arxiv.org/abs/2110.04627);
    it starts at vectors of the first batch, and codes whose moving count falls below `restart_below` move to vectors of
    the current batch. Gradients pass straight through to the encoder.

    Args:
        codebook_size: K.
        values_per_code: colour values for which a code stands; unused here, part of every quantizer's signature.
        codebook_dim: D.
        commitment: weight of |z_e - sg(code)|^2, averaged over positions and summed over D.
        decay: of the moving averages.
        restart_below: moving count (in vectors a batch) under which a code counts as dead.
    """

    codebook: Tensor
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
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, expected a number between 0 and 1")
        self.in_channels = self.out_channels = codebook_dim
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        # Untrained encoders send every patch into nearly the same direction; on the unit sphere all would share a code.
        self.standardise = nn.BatchNorm2d(codebook_dim, affine=False)
        codebook = F.normalize(torch.randn(codebook_size, codebook_dim), dim=1)
        self.register_buffer("codebook", codebook)
        self.register_buffer("sums", torch.zeros_like(codebook))
        self.register_buffer("counts", torch.zeros(codebook_size))

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        return rearrange(F.embedding(indices, self.codebook), "b h w d -> b d h w")

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return self._nearest(F.normalize(self.standardise(z_e.float()), dim=1))

    def relax(self, z_e: Tensor) -> Quantized:
        return self._quantize(F.normalize(self.standardise(z_e.float()), dim=1))

    def _quantize(self, z_e: Tensor) -> Quantized:
        indices = self._nearest(z_e)
        codes = self.indices_to_codes(indices)
        commitment_loss = (z_e - codes.detach()).square().sum(dim=1).mean()
        z_q = z_e + (codes - z_e).detach()
        return Quantized(
            z_q, indices, self.commitment * commitment_loss, parts={"commitment": commitment_loss.detach()}
        )

    def forward(self, z_e: Tensor) -> Quantized:
        if not self.training:
            return super().forward(z_e)
        z_e = F.normalize(self.standardise(z_e.float()), dim=1)
        vectors = rearrange(z_e.detach(), "b d h w -> (b h w) d")
        self._start(vectors)
        quantized = self._quantize(z_e)
        self._update(vectors, quantized.indices.flatten())
        return quantized

    def _nearest(self, z_e: Tensor) -> Tensor:
        similarity = torch.einsum("bdhw,kd->bhwk", z_e, self.codebook)  # unit vectors: the largest is the nearest
        return similarity.argmax(dim=-1)

    def _sample(self, vectors: Tensor, n: int) -> Tensor:
        """n of the vectors (N, D), repeated only where there are fewer than n, and a little apart from one another."""
        order = torch.randperm(len(vectors), device=vectors.device)
        picked = vectors[order.repeat(-(-n // len(order)))[:n]]
        return F.normalize(picked + 0.01 * torch.randn_like(picked), dim=1)

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        if self.counts.any():
            return
        self.codebook.copy_(self._sample(vectors, self.codebook_size))
        self.counts.fill_(1.0)
        self.sums.copy_(self.codebook)

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor) -> None:
        batch_counts = torch.zeros_like(self.counts).index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        batch_sums = torch.zeros_like(self.sums).index_add_(0, indices, vectors)
        self.counts.lerp_(batch_counts, 1 - self.decay)
        self.sums.lerp_(batch_sums, 1 - self.decay)
        dead = self.counts < self.restart_below
        if n_dead := int(dead.sum()):
            self.sums[dead] = self._sample(vectors, n_dead)
            self.counts[dead] = 1.0
        self.codebook.copy_(F.normalize(self.sums, dim=1))


QUANTIZERS: dict[str, type[Quantizer]] = {"gumbel": Gumbel, "vq": VectorQuantizer}


def build_quantizer(kind: str, codebook_size: int, values_per_code: int, options: Mapping[str, Any]) -> Quantizer:
    """The quantizer named `kind`. Raises ValueError for an unknown kind or an option its class does not have."""
    if kind not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {kind!r}, expected one of {', '.join(QUANTIZERS)}")
    parameters = inspect.signature(QUANTIZERS[kind].__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if unknown := set(options) - set(known):
        raise ValueError(f"quantizer {kind!r} has no option {sorted(unknown)[0]!r}, expected one of {', '.join(known)}")
    return QUANTIZERS[kind](codebook_size, values_per_code, **options)
