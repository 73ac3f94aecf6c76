"""The paper's relaxation of a categorical code (https://arxiv.org/abs/2102.12092, section 2.1 and appendix A.2)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from kernels.nearest import argmax_linear
from vqvae.losses import kl_to_uniform
from vqvae.quantizer import Quantized, Quantizer
from vqvae.schedules import cosine


class Gumbel(Quantizer):
    """Gumbel-softmax over the codebook, soft in the forward and in the backward pass.

    The loss is beta * KL to the uniform prior, taken from the raw logits and divided, like the reconstruction, by the
    picture's number of colour values: beta / values_per_code on the KL averaged over the positions (6.6 / 192 in the
    paper).

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
        for name, value in {"tau_steps": tau_steps, "beta": beta, "beta_steps": beta_steps}.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
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

    def indices_after(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """Without logits, K values for each code; they are compared in float32, also under autocast."""
        return argmax_linear(features.movedim(1, -1), conv.weight.flatten(1), conv.bias)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        codes = torch.zeros(indices.shape[0], self.codebook_size, *indices.shape[1:], device=indices.device)
        return codes.scatter_(1, indices.unsqueeze(1), 1.0)  # (B, K, h, w)

    def indices_into(self, indices: Tensor, conv: nn.Conv2d) -> Tensor:
        """Without one-hot vectors: the convolution's weight columns are the embedding. In its weights' dtype."""
        bias = 0 if conv.bias is None else conv.bias
        return (F.embedding(indices, conv.weight.flatten(1).t()) + bias).movedim(-1, 1)  # (B, C, h, w)

    def relax(self, z_e: Tensor) -> Quantized:
        logits = z_e.float()  # (B, K, h, w)
        z_q = F.gumbel_softmax(logits, tau=self.tau, dim=1)
        kl = kl_to_uniform(logits).mean()
        loss = self.beta / self.values_per_code * kl
        return Quantized(z_q, self.hard_indices(logits), loss, logits, {"kl": kl.detach()})
