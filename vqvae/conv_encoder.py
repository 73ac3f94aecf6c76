"""VQGAN's encoder: mapped pixels -> one vector per grid position. Mirror of conv_decoder.py.

https://arxiv.org/abs/2012.09841, table 7.
"""

from collections import OrderedDict

import torch.nn as nn
from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.conv_blocks import downsample, group, middle, norm
from vqvae.cpu_layers import Conv3x3


class ConvEncoder(nn.Module):
    """(B, 3, H, W) mapped pixels -> z_e (B, n_out, H / f, W / f), f = 2^(n_groups - 1).

    Each group but the last, the one with attention, ends in a convolution of stride 2. The last two layers go to n_init
    channels (VQGAN's z_channels), and from there by a 1x1 convolution (its quant_conv) to n_out.
    """

    def __init__(self, config: DiscreteVAEConfig, n_out: int) -> None:
        super().__init__()
        widths = config.widths
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=Conv3x3(3, config.n_hid))
        for g, width in enumerate(widths):
            n_in, last = widths[g - 1] if g else config.n_hid, g + 1 == len(widths)
            blocks = group(n_in, width, config.n_blk_per_group, attention=last)
            if not last:
                blocks["downsample"] = downsample(width)
            layers[f"group_{g + 1}"] = nn.Sequential(blocks)
        layers["middle"] = middle(widths[-1])
        layers["narrow"] = nn.Sequential(
            OrderedDict(norm=norm(widths[-1]), swish=nn.SiLU(), conv=Conv3x3(widths[-1], config.n_init))
        )
        layers["output"] = nn.Conv2d(config.n_init, n_out, 1)
        self.blocks = nn.Sequential(layers)

    @property
    def output_conv(self) -> nn.Conv2d:
        """1x1: features -> z_e."""
        return self.blocks.output

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n_init, H / f, W / f): all but the last convolution."""
        return self.blocks[:-1](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_conv(self.features(x))
