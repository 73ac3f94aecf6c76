"""The only place that knows the pixel range.

Everywhere else images are float in [0, 1]. The logit-Laplace distribution lives on the open interval (0, 1), so the
dVAE sees phi(x) = (1 - 2e) x + e with e = 0.1 (https://arxiv.org/abs/2102.12092, appendix A.3).
"""

from torch import Tensor

EPSILON = 0.1


def map_pixels(images: Tensor) -> Tensor:
    """phi: images in [0, 1], any shape -> the same shape in [0.1, 0.9]."""
    return (1 - 2 * EPSILON) * images + EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Inverse of phi, clamped: values in (0, 1) -> images in [0, 1]."""
    return ((mapped - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)
