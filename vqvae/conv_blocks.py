"""The blocks of VQGAN's network: residual, attention, and the steps between resolutions.

https://arxiv.org/abs/2012.09841, whose sizes and starting values (PyTorch's own) those of LlamaGen are too
(https://arxiv.org/abs/2406.06525).

Legend: B batch, C channels, H W positions.
"""

from collections import OrderedDict

import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqvae.cpu_layers import Conv3x3

N_NORM_GROUPS = 32


def norm(width: int) -> nn.GroupNorm:
    """Group norm of 32 groups; where the width is no multiple of 32, as in small networks, groups of 4 channels.

    The width is a multiple of 4. Groups of one channel would leave nothing of a channel's mean.
    """
    n_groups = N_NORM_GROUPS if width % N_NORM_GROUPS == 0 else width // 4
    return nn.GroupNorm(n_groups, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """out = id_path(x) + res_path(x): (B, n_in, H, W) -> (B, n_out, H, W)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.id_path = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential(
            OrderedDict(
                norm_1=norm(n_in),
                swish_1=nn.SiLU(),
                conv_1=Conv3x3(n_in, n_out),
                norm_2=norm(n_out),
                swish_2=nn.SiLU(),
                conv_2=Conv3x3(n_out, n_out),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.res_path(x)


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), one head as wide as x over all positions: (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (rearrange(conv(normed), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        o = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(o, "b 1 (h w) c -> b c h w", h=x.shape[2]))


def middle(width: int) -> nn.Sequential:
    """What stands at the lowest resolution, between encoder and bottleneck and between bottleneck and decoder."""
    return nn.Sequential(
        OrderedDict(
            block_1=ResidualBlock(width, width), attention=AttentionBlock(width), block_2=ResidualBlock(width, width)
        )
    )


def group(n_in: int, n_out: int, n_blocks: int, attention: bool) -> OrderedDict[str, nn.Module]:
    """The blocks of one resolution by name, each followed by attention where that is asked for."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(n_blocks):
        blocks[f"block_{i + 1}"] = ResidualBlock(n_in if i == 0 else n_out, n_out)
        if attention:
            blocks[f"attention_{i + 1}"] = AttentionBlock(n_out)
    return blocks


def downsample(width: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, C, H / 2, W / 2), H and W even: output i is of inputs 2i to 2i + 2."""
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(width, width, 3, stride=2)))


def upsample(width: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, C, 2 H, 2 W): pixels repeated, then a convolution."""
    return nn.Sequential(OrderedDict(repeat=nn.Upsample(scale_factor=2, mode="nearest"), conv=Conv3x3(width, width)))
