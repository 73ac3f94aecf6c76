"""The dVAE's encoder: mapped pixels -> one vector per grid position. Mirror of decoder.py."""

from collections import OrderedDict

import torch.nn as nn
from torch import Tensor

from vqvae.blocks import Block, conv
from vqvae.config import DiscreteVAEConfig
from vqvae.cpu_layers import MaxPool2x2

KERNELS = (3, 3, 3, 1)


def _group(n_in: int, n_out: int, config: DiscreteVAEConfig, pool: bool) -> nn.Sequential:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(config.n_blk_per_group):
        blocks[f"block_{i + 1}"] = Block(n_in if i == 0 else n_out, n_out, KERNELS, config.residual_gain)
    if pool:
        blocks["pool"] = MaxPool2x2()
    return nn.Sequential(blocks)


class Encoder(nn.Module):
    """(B, 3, H, W) mapped pixels -> z_e (B, n_out, H / f, W / f), f = 2^(n_groups - 1).

    Widths double from group to group: n_hid, 2 n_hid, 4 n_hid, ...; each group but the last ends in a 2x2 max-pool.
    """

    def __init__(self, config: DiscreteVAEConfig, n_out: int) -> None:
        super().__init__()
        widths = config.widths
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=conv(3, config.n_hid, 7))
        for g, width in enumerate(widths):
            n_in = widths[max(g - 1, 0)]
            layers[f"group_{g + 1}"] = _group(n_in, width, config, pool=g + 1 < config.n_groups)
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv(widths[-1], n_out, 1)))
        self.blocks = nn.Sequential(layers)

    @property
    def output_conv(self) -> nn.Conv2d:
        """1x1: features -> z_e."""
        return self.blocks.output.conv

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width of the last group, H / f, W / f): all but the last convolution."""
        return self.blocks.output.relu(self.blocks[:-1](x))

    def forward(self, x: Tensor) -> Tensor:
        return self.output_conv(self.features(x))
