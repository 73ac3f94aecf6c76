"""The only place that knows the pixel range.

Everywhere else images are float in [0, 1]. A network sees them in a space of its own, and says by its maps in that
space what picture it means:

    logit_laplace   the dVAE's: phi(x) = (1 - 2e) x + e with e = 0.1, as the logit-Laplace distribution lives on the
                    open interval (0, 1); the maps are its location mu and the logarithm of its scale b, both in logit
                    space (https://arxiv.org/abs/2102.12092, appendix A.3)
    signed          2x - 1, and maps of the same; what VQGANs use (https://arxiv.org/abs/2012.09841)
"""

import torch
from torch import Tensor

EPSILON = 0.1
OVERSHOOT = 0.25  # beyond [0, 1], more than sharp resizing makes


def map_pixels(images: Tensor) -> Tensor:
    """phi: images in [0, 1], any shape -> the same shape in [0.1, 0.9]."""
    return (1 - 2 * EPSILON) * images + EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Inverse of phi: (0, 1) -> a little beyond [0, 1]."""
    return (mapped - EPSILON) / (1 - 2 * EPSILON)


def check_range(images: Tensor) -> None:
    """Raises ValueError for images that look to be in another range than [0, 1]; not while being compiled."""
    if torch.compiler.is_compiling() or images.is_meta or images.numel() == 0:
        return
    least, most = (value.item() for value in images.aminmax())
    if least < -OVERSHOOT or most > 1 + OVERSHOOT:
        raise ValueError(f"images run from {least:.4g} to {most:.4g}, expected [0, 1]")


class PixelSpace:
    """What a network sees of pictures, and the pictures that its maps stand for."""

    n_maps: int
    """That the decoder has to give."""

    def from_images(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> what the encoder sees, (B, 3, H, W)."""
        raise NotImplementedError

    def to_images(self, maps: Tensor) -> Tensor:
        """maps (B, n_maps, H, W) -> images (B, 3, H, W) in float32, differentiable, and so not cut to [0, 1]."""
        raise NotImplementedError


class LogitLaplace(PixelSpace):
    """mu in the first three maps, ln b in the last three, which has no part in the picture: phi^-1(sigmoid(mu))."""

    n_maps = 6

    def from_images(self, images: Tensor) -> Tensor:
        return map_pixels(images)

    def to_images(self, maps: Tensor) -> Tensor:
        return unmap_pixels(torch.sigmoid(maps[:, :3].float()))


class Signed(PixelSpace):
    """-1 for black, 1 for white."""

    n_maps = 3

    def from_images(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def to_images(self, maps: Tensor) -> Tensor:
        return (maps.float() + 1) / 2


PIXEL_SPACES: dict[str, PixelSpace] = {"logit_laplace": LogitLaplace(), "signed": Signed()}
