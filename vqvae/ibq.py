"""Index backpropagation quantization (https://arxiv.org/abs/2412.02692): all codes learn from every vector."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from kernels.nearest import argmax_linear
from vqvae.entropies import batch_mean, entropy
from vqvae.quantizer import Quantized, Quantizer


class IBQ(Quantizer):
    """The code with the largest product with the vector; backwards, the softmax of all products takes its place.

    The loss is the paper's double quantization loss, |z_q - z_e|^2 + |sg(code) - z_e|^2 + beta * |code - sg(z_e)|^2
    averaged over positions and channels, and entropy * (sample entropy - batch entropy) of the softmax at
    `temperature`. z_q and the code are the same vector with other gradients.

    Training holds a value for each vector and code, several times; hard codes are found without that.

    Args:
        codebook_size: K.
        values_per_code: colour values for which a code stands; unused here, part of every quantizer's signature.
        codebook_dim: D.
        beta: weight of the code's way to its vectors.
        entropy: weight of the entropies, in nats.
        temperature: of their softmax; that of the gradient has 1.
    """

    def __init__(
        self,
        codebook_size: int,
        values_per_code: int,
        *,
        codebook_dim: int = 16,
        beta: float = 0.25,
        entropy: float = 0.05,
        temperature: float = 0.01,
    ) -> None:
        super().__init__(codebook_size)
        if not (isinstance(codebook_dim, int) and codebook_dim >= 1):
            raise ValueError(f"codebook_dim is {codebook_dim}, expected a whole number of at least 1")
        for name, value in {"beta": beta, "entropy": entropy}.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected more than 0")
        self.in_channels = self.out_channels = codebook_dim
        self.beta, self.entropy, self.temperature = beta, entropy, temperature
        self.codebook = nn.Parameter(0.2 * torch.randn(codebook_size, codebook_dim))

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        return rearrange(F.embedding(indices, self.codebook).float(), "b h w d -> b d h w")

    def hard_indices(self, z_e: Tensor) -> Tensor:
        return argmax_linear(z_e.float().movedim(1, -1), self.codebook)

    def relax(self, z_e: Tensor) -> Quantized:
        with torch.autocast(z_e.device.type, enabled=False):
            return self._quantize(z_e.float())

    def _quantize(self, z_e: Tensor) -> Quantized:
        codebook = self.codebook.float()
        logits = einsum(z_e, codebook, "b d h w, k d -> b k h w")
        indices = self.hard_indices(z_e)
        codes = self.indices_to_codes(indices)
        p = logits.softmax(dim=1)
        # The codes' own gradient is that of the one-hot vector, all others' comes through the logits.
        z_q = codes + einsum(p - p.detach(), codebook, "b k h w, k d -> b d h w")
        quantization = (
            (z_q - z_e).square().mean()
            + (codes.detach() - z_e).square().mean()
            + self.beta * (codes - z_e.detach()).square().mean()
        )
        q = rearrange(logits / self.temperature, "b k h w -> (b h w) k").softmax(dim=1)
        sample_entropy = entropy(q).mean()
        batch_entropy = entropy(batch_mean(q.sum(dim=0), len(q), all_ranks=self.training))
        loss = quantization + self.entropy * (sample_entropy - batch_entropy)
        parts = {"sample_entropy": sample_entropy, "batch_entropy": batch_entropy, "quantization": quantization}
        return Quantized(z_q, indices, loss, logits, {name: value.detach() for name, value in parts.items()})
