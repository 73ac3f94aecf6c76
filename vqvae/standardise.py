"""Standardising of the encoder's vectors before they are quantized."""

import torch
import torch.nn as nn
from torch import Tensor

from vqvae.ranks import sum_over_ranks


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
