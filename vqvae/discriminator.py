"""The patch discriminator of adversarial training, and its losses as pure functions.

Legend: B batch, H W pixels, n m places of patches.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vqvae.pixels import PIXEL_SPACES

GROUPS = 8  # of the normalisation; widths are multiples of it


class PatchDiscriminator(nn.Module):
    """Says of each patch of a picture whether it is real: (B, 3, H, W) in [0, 1] -> logits (B, 1, n, m).

    PatchGAN (https://arxiv.org/abs/1611.07004, section 3.2.2; the layers: appendix 6.1.2), with group in the place of
    batch normalisation, so that a picture's logits depend on nothing but the picture: real and generated ones go in
    separately, and the processes of a run have small batches of their own.

    Args:
        width: channels after the first layer; they double up to 8 times it.
        n_layers: layers of stride 2; with 3, a patch is 70 pixels wide.
    """

    def __init__(self, width: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        if width < GROUPS or width % GROUPS:
            raise ValueError(f"width is {width}, expected a multiple of {GROUPS}")
        if n_layers < 1:
            raise ValueError(f"n_layers is {n_layers}, expected at least 1")
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        n_in = width
        for i in range(1, n_layers + 1):
            n_out, stride = width * min(2**i, 8), 2 if i < n_layers else 1
            layers += [nn.Conv2d(n_in, n_out, 4, stride, padding=1, bias=False), nn.GroupNorm(GROUPS, n_out)]
            layers.append(nn.LeakyReLU(0.2))
            n_in = n_out
        layers.append(nn.Conv2d(n_in, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    @property
    def smallest_side(self) -> int:
        """Of pictures, in pixels: the last two layers each take a place from the size that the strides leave."""
        return 3 * 2 ** sum(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in self.layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(PIXEL_SPACES["signed"].from_images(images))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, of logits of any shape; 2 where all are 0 (https://arxiv.org/abs/1705.02894)."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's part of the hinge game: it wants its logits high."""
    return -fake.float().mean()


def lecam_penalty(real: Tensor, fake: Tensor, average_real: Tensor, average_fake: Tensor) -> Tensor:
    """How far logits lie beyond the moving average of the other kind (https://arxiv.org/abs/2104.03310, equation 5).

    It holds the discriminator back where there are few pictures. Of the logits' means in each picture.
    """
    real, fake = (logits.float().flatten(1).mean(dim=1) for logits in (real, fake))
    return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor, largest: float) -> Tensor:
    """The factor that gives the adversarial loss as strong a gradient as the reconstruction, at the last layer.

    |d reconstruction / d last_weight| / (|d adversarial / d last_weight| + 1e-4), at most `largest`
    (https://arxiv.org/abs/2012.09841, equation 7). Both losses keep their graphs.
    """
    of_reconstruction, of_adversarial = (
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0].float().norm()
        for loss in (reconstruction, adversarial)
    )
    return (of_reconstruction / (of_adversarial + 1e-4)).clamp(max=largest).detach()
