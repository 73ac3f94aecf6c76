"""The dVAE's decoder: quantized codes -> maps that mean a picture (pixels.py). Mirror of encoder.py."""

from collections import OrderedDict

import torch.nn as nn
from torch import Tensor

from vqvae.blocks import Block, conv, with_starting_values
from vqvae.config import DiscreteVAEConfig
from vqvae.output_conv import OutputConv

KERNELS = (1, 3, 3, 3)


def _group(n_in: int, n_out: int, config: DiscreteVAEConfig, upsample: bool) -> nn.Sequential:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(config.n_blk_per_group):
        first = i == 0
        blocks[f"block_{i + 1}"] = Block(
            n_in if first else n_out, n_out, KERNELS, config.residual_gain, upsample and first
        )
    return nn.Sequential(blocks)


class Decoder(nn.Module):
    """z_q (B, n_in, h, w) -> maps (B, n_maps, h f, w f).

    Each group but the first begins by doubling the resolution, by repeated positions.

    Fed with one-hot codes the 1x1 input convolution is the embedding: its weight column k belongs to code k.
    """

    def __init__(self, config: DiscreteVAEConfig, n_in: int, n_maps: int) -> None:
        super().__init__()
        widths = config.widths[::-1]
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=conv(n_in, config.n_init, 1))
        for g, width in enumerate(widths):
            n_group_in = config.n_init if g == 0 else widths[g - 1]
            layers[f"group_{g + 1}"] = _group(n_group_in, width, config, upsample=g > 0)
        layers["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=with_starting_values(OutputConv(widths[-1], n_maps, 1)))
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
