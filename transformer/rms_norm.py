"""RMSNorm (https://arxiv.org/abs/1910.07467), y = x / sqrt(mean(x^2) + eps) * gain, its backward pass by hand.

On CPUs PyTorch puts it together from single operations and differentiates each of them: at the size of the demo's prior
that takes twice the time of these. Written as x_hat = x / rms, with C numbers a vector, the gradients are

    dgain = sum over vectors of dy * x_hat
    dx    = (dy * gain - x_hat * mean(dy * gain * x_hat)) / rms
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from transformer.config import NORM_EPS


class RMSNorm(nn.Module):
    """Normalises the last dimension: (..., C) -> (..., C), computed in float32 at least.

    Under autocast, the CPU's result has autocast's dtype, which the linear layer after it would take it to anyway.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # both fuse it
            return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        return _RMSNorm.apply(x, self.weight, dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(NORM_EPS).rsqrt_()
        x_hat = wide * inverse
        ctx.save_for_backward(x_hat, inverse, gain)
        ctx.dtype = x.dtype
        return (x_hat * gain).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_hat, inverse, gain = ctx.saved_tensors
        dy = dy.to(x_hat.dtype)
        product = dy * x_hat
        dgain = product.reshape(-1, product.shape[-1]).sum(dim=0)
        mean = (product @ gain.to(product.dtype)).div_(x_hat.shape[-1])[..., None]
        dx = (dy * gain).addcmul_(x_hat, mean, value=-1).mul_(inverse)
        return dx.to(ctx.dtype), dgain.to(gain.dtype), None
