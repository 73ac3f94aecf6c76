"""VQGAN's decoder: quantized codes -> maps that mean a picture (pixels.py). Mirror of conv_encoder.py.

https://arxiv.org/abs/2012.09841, table 7.
"""

from collections import OrderedDict

import torch.nn as nn
from torch import Tensor

from vqvae.config import DiscreteVAEConfig
from vqvae.conv_blocks import group, middle, norm, upsample
from vqvae.cpu_layers import Conv3x3
from vqvae.output_conv import OutputConv


class ConvDecoder(nn.Module):
    """z_q (B, n_in, h, w) -> maps (B, n_maps, h f, w f).

    The 1x1 input convolution is VQGAN's post_quant_conv; fed with one-hot codes, the embedding. Groups come from the
    lowest resolution, the one with attention, to the highest, and have a block more than the encoder's.
    """

    def __init__(self, config: DiscreteVAEConfig, n_in: int, n_maps: int) -> None:
        super().__init__()
        widths = config.widths[::-1]
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(n_in, config.n_init, 1))
        layers["widen"] = Conv3x3(config.n_init, widths[0])
        layers["middle"] = middle(widths[0])
        for g, width in enumerate(widths):
            blocks = group(widths[max(g - 1, 0)], width, config.n_blk_per_group + 1, attention=g == 0)
            if g + 1 < len(widths):
                blocks["upsample"] = upsample(width)
            layers[f"group_{g + 1}"] = nn.Sequential(blocks)
        layers["output"] = nn.Sequential(
            OrderedDict(norm=norm(widths[-1]), swish=nn.SiLU(), conv=OutputConv(widths[-1], n_maps, 3, padding=1))
        )
        self.blocks = nn.Sequential(layers)

    @property
    def input_conv(self) -> nn.Conv2d:
        """1x1: z_q -> the embedding of its codes."""
        return self.blocks.input

    def after_input(self, x: Tensor) -> Tensor:
        """(B, n_init, h, w) -> (B, n_maps, h f, w f): all but the first convolution."""
        return self.blocks[1:](x)

    @property
    def output_conv(self) -> nn.Conv2d:
        """The last layer."""
        return self.blocks.output.conv

    def forward(self, z_q: Tensor) -> Tensor:
        return self.blocks(z_q)
