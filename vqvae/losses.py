"""Pure functions of the tokenizer's training: reconstruction, KL, codebook health.

Legend: B batch, K codebook, h w token grid, H W pixels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.pixels import map_pixels


def logit_laplace_nll(images: Tensor, mu: Tensor, ln_b: Tensor) -> Tensor:
    """Negative log-likelihood of images under the logit-Laplace distribution, in nats per colour value.

    f(x | mu, b) = exp(-|logit(x) - mu| / b) / (2 b x (1 - x)), x = phi(image) (https://arxiv.org/abs/2102.12092, eq 2).

    Args:
        images: (B, 3, H, W) in [0, 1].
        mu: (B, 3, H, W), location in logit space.
        ln_b: (B, 3, H, W), logarithm of the scale.

    Returns:
        (B, 3, H, W), float32.
    """
    x = map_pixels(images.float())
    mu, ln_b = mu.float(), ln_b.float()
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + ln_b + math.log(2) + torch.log(x) + torch.log1p(-x)


SQUARED_ERROR_STD = 0.1


def squared_error_nll(images: Tensor, mu: Tensor) -> Tensor:
    """Negative log-likelihood, up to a constant, of phi(images) under a normal distribution of fixed spread.

    Its mean is sigmoid(mu), its standard deviation 0.1. Shapes as in `logit_laplace_nll`, which starts from medians and
    learns to see small things late.
    """
    return (torch.sigmoid(mu.float()) - map_pixels(images.float())).square() / (2 * SQUARED_ERROR_STD**2)


class ReconstructionLoss(NamedTuple):
    """function(images (B, 3, H, W) in [0, 1], maps (B, n_maps, H, W)) -> (B, 3, H, W), float32, where maps are those
    of the pixel space called `pixels`."""

    pixels: str
    function: Callable[[Tensor, Tensor], Tensor]


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {
    "logit_laplace": ReconstructionLoss(
        "logit_laplace", lambda images, maps: logit_laplace_nll(images, *maps.chunk(2, dim=1))
    ),
    "squared_error": ReconstructionLoss("logit_laplace", lambda images, maps: squared_error_nll(images, maps[:, :3])),
    "l1": ReconstructionLoss("signed", lambda images, maps: (maps.float() - (2 * images.float() - 1)).abs()),
    "l2": ReconstructionLoss("signed", lambda images, maps: (maps.float() - (2 * images.float() - 1)).square()),
}


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform over K) of each grid position, in nats: (B, K, h, w) -> (B, h, w), in [0, ln K].

    Taken from the raw logits: no Gumbel noise, no temperature.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * log_p).sum(dim=1) + math.log(logits.shape[1])
