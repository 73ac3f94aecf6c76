"""The rotation trick (https://arxiv.org/abs/2410.06424): the gradients of codes turned back onto their vectors.

Legend: B batch, D codebook_dim, h w token grid.
"""

import torch.nn.functional as F
from torch import Tensor


def rotate_to(z_e: Tensor, codes: Tensor) -> Tensor:
    """The codes (B, D, h, w), with the gradient for z_e (B, D, h, w) that a rotation and rescaling of z_e has.

    q = |q| / |e| R e for a code q and a vector e, whose direction R turns into that of q in their plane (section 4.2);
    both factors count as constants. The codes get no gradient, nor do vectors of length 0, which have no direction.
    """
    codes = codes.detach()
    e, q = F.normalize(z_e.detach(), dim=1), F.normalize(codes, dim=1)
    r = F.normalize(e + q, dim=1)
    # |e|^2 is 1, or 0 for a vector of length 0.
    scale = codes.norm(dim=1, keepdim=True) * _dot(e, e) / z_e.detach().norm(dim=1, keepdim=True).clamp(min=1e-12)
    rotated = scale * (z_e - 2 * _dot(r, z_e) * r + 2 * _dot(e, z_e) * q)
    return codes + rotated - rotated.detach()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, keepdim=True)
