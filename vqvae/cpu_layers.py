"""Layers that go another way than PyTorch's where nothing is to be differentiated, on a CPU, in float32.

Winograd's algorithm (https://arxiv.org/abs/1509.09308): F(6x6, 3x3) takes 64 products for 36 outputs, where the sum as
it stands takes 324. NNPACK, which PyTorch brings along, has it for CPUs; PyTorch itself next to never asks for it.
"""

import torch
import torch.nn as nn
from torch import Tensor

LEAST_WIDTH = 64  # channels in and out: with fewer, the transforms take what the products save
LEAST_POSITIONS, MOST_POSITIONS = 32 * 32, 512 * 512  # of a map; NNPACK never gives back the memory it once took


class Conv3x3(nn.Conv2d):
    """Keeps the size: (B, n_in, H, W) -> (B, n_out, H, W).

    Wide layers on large maps go through NNPACK there, 1.2 to 3 times as fast, picture by picture, so that what becomes
    of one does not depend on its batch. They round as if to 18 bits of the largest value in a tile of 8x8 positions, in
    the place of 22 (TF32, on a GPU: 11), and what is not finite spreads over its tile. NNPACK has as many threads as
    PyTorch had when it was first used. `torch.backends.nnpack.flags(enabled=False)` has the layers go PyTorch's way.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not (_is_plain(x) and x.is_contiguous() and self._suits(x) and _has_nnpack()):
            return super().forward(x)
        convolve = torch.ops.aten._nnpack_spatial_convolution
        pictures = [convolve(picture, self.weight, self.bias, [1, 1]) for picture in x.split(1)]
        return pictures[0] if len(pictures) == 1 else torch.cat(pictures)

    def _suits(self, x: Tensor) -> bool:
        wide = min(self.in_channels, self.out_channels) >= LEAST_WIDTH
        large = LEAST_POSITIONS <= x.shape[2] * x.shape[3] <= MOST_POSITIONS
        return wide and large and self.weight.dtype == torch.float32 and self.padding_mode == "zeros"


class MaxPool2x2(nn.MaxPool2d):
    """(B, C, H, W) -> (B, C, H // 2, W // 2).

    PyTorch's takes a map in rows value by value; here whole rows are compared, which is 10 times as fast.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        if not (_is_plain(x) and x.is_contiguous() and min(x.shape[2:]) >= 2):
            return super().forward(x)
        height, width = (side // 2 * 2 for side in x.shape[-2:])
        rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def in_rows(x: Tensor) -> Tensor:
    """x (B, C, H, W) with each of its maps in rows, where that has these layers go their own way; else x as it is."""
    return x.contiguous() if _is_plain(x) else x


def _is_plain(x: Tensor) -> bool:
    """Whether x is a batch of maps in float32 on a CPU, with nothing to be differentiated, traced or compiled."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.ndim == 4
        and x.shape[0] > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _has_nnpack() -> bool:
    # Two of the three names are private in PyTorch and may be gone one day: then it is PyTorch's own convolution.
    enabled = getattr(torch._C, "_get_nnpack_enabled", None)
    known = enabled is not None and hasattr(torch.ops.aten, "_nnpack_spatial_convolution")
    return known and enabled() and torch.backends.nnpack.is_available()  # the last question also readies it
