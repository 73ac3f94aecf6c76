"""The contract of the quantizers: z_e in, codes out; the rest of the model never asks which one it holds.

    forward(z_e) -> Quantized        training mode: what is trained through; eval mode: the hard codes
    relax(z_e) -> Quantized          what is trained through, in either mode
    harden(quantized) -> Quantized   the same with the hard codes
    hard_indices(z_e)                the codes' numbers
    indices_after(features, conv)    the same of z_e = conv(features), which need not be written out for it
    indices_to_codes(indices)        the codes as the decoder knows them
    indices_into(indices, conv)      conv of these, which need not be written out for it
    anneal(step) -> dict             moves the schedules; returns their values to log
    in_channels, out_channels        what the encoder must give, what the decoder gets

Only `forward` in training mode changes state, so what a picture's tokens are depends on weights and picture alone.

Legend, here and in the files of the quantizers: B batch, K codebook, D codebook_dim, h w token grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch.nn as nn
from torch import Tensor


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
        """(B, h, w) int64 -> (B, out_channels, h, w) float32."""
        raise NotImplementedError

    def indices_into(self, indices: Tensor, conv: nn.Conv2d) -> Tensor:
        """conv(indices_to_codes(indices)) of (B, h, w) int64 and a 1x1 convolution -> (B, C, h, w)."""
        return conv(self.indices_to_codes(indices).to(conv.weight.dtype))

    def hard_indices(self, z_e: Tensor) -> Tensor:
        """z_e (B, in_channels, h, w) of any floating dtype -> (B, h, w) int64, without noise."""
        raise NotImplementedError

    def indices_after(self, features: Tensor, conv: nn.Conv2d) -> Tensor:
        """hard_indices(conv(features)) of features (B, C, h, w) and a 1x1 convolution -> (B, h, w) int64."""
        return self.hard_indices(conv(features))

    def relax(self, z_e: Tensor) -> Quantized:
        """What training puts through the decoder."""
        raise NotImplementedError

    def harden(self, quantized: Quantized) -> Quantized:
        """The same with the codes of its indices as z_q."""
        return replace(quantized, z_q=self.indices_to_codes(quantized.indices))

    def forward(self, z_e: Tensor) -> Quantized:
        relaxed = self.relax(z_e)
        return relaxed if self.training else self.harden(relaxed)

    def anneal(self, step: int) -> dict[str, float]:
        """Sets the schedules to optimiser step `step`; returns {name: value}."""
        return {}
