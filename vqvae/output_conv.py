"""The decoders' last convolution."""

import torch
import torch.nn as nn
from torch import Tensor


class OutputConv(nn.Conv2d):
    """In use it computes in float32, whatever the precision of autocast or of the weights.

    A map in bfloat16 has 256 steps between two powers of 2, in float16 2,048: what has bands in a smooth sky. The
    layers before may be in half precision, as each value of the maps is a sum of many of theirs. In training it is a
    convolution like any other.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._conv_forward(x.float(), self.weight.float(), self.bias.float())
