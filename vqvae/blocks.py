"""The dVAE's residual block: four convolutions, ReLU before each, no normalisation.

https://arxiv.org/abs/2102.12092, appendix A.1.
"""

from collections import OrderedDict

import torch
import torch.nn as nn
from torch import Tensor

from vqvae.cpu_layers import Conv3x3


def conv(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    """A size-preserving convolution with the paper's starting values."""
    if kernel == 3:
        return with_starting_values(Conv3x3(n_in, n_out))
    return with_starting_values(nn.Conv2d(n_in, n_out, kernel, padding=(kernel - 1) // 2))


def with_starting_values(layer: nn.Conv2d) -> nn.Conv2d:
    """The same layer with w ~ N(0, 1 / (n_in k^2)), b = 0."""
    nn.init.normal_(layer.weight, std=(layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """out = id_path(x) + post_gain * res_path(x): (B, n_in, H, W) -> (B, n_out, H, W), or (B, n_out, 2 H, 2 W).

    Args:
        n_in, n_out: widths; n_out is a multiple of 4, the hidden width is n_out / 4.
        kernels: the four kernel sizes, (3, 3, 3, 1) in the encoder and (1, 3, 3, 3) in the decoder: the 1x1 convolution
            stands on the side of the bottleneck.
        post_gain: weight of the residual path.
        upsample: for a block whose first kernel is 1, of what it would make of x with each position repeated twice in
            both directions. As a 1x1 convolution sees one position, it is taken before they are repeated, once.
    """

    def __init__(
        self, n_in: int, n_out: int, kernels: tuple[int, int, int, int], post_gain: float, upsample: bool = False
    ) -> None:
        super().__init__()
        if upsample and kernels[0] != 1:
            raise ValueError(f"the first kernel is {kernels[0]}, expected 1 for a block that upsamples")
        n_hid = n_out // 4
        widths = (n_in, n_hid, n_hid, n_hid, n_out)
        self.repeat = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU(inplace=i > 0)  # the first one's input goes into the identity path too
            layers[f"conv_{i + 1}"] = conv(widths[i], widths[i + 1], kernel)
            if i == 0:
                layers["repeat"] = self.repeat
        self.id_path = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential(layers)
        self.post_gain = post_gain

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.repeat(self.id_path(x)), self.res_path(x), alpha=self.post_gain)
