"""Rotary positions in two dimensions (https://arxiv.org/abs/2104.09864; axial form: https://arxiv.org/abs/2403.13298).

Pairs of numbers of a query or key are turned by an angle proportional to its position, so that their dot product knows
the difference of the two. Half the pairs turn with the row and half with the column. Text has one axis: position p
stands at row p - text_len of column 0, so a caption reads as a column of words that ends where the picture begins.

Shapes: T sequence, D head dim; the angles of D numbers are D / 2.
"""

import torch
from torch import Tensor

from transformer.config import PriorConfig

BASE = 100.0
"""Of the axial paper: the slowest pair turns once in 2 pi 100 = 628 positions, longer than text or grid."""


def positions_2d(config: PriorConfig) -> Tensor:
    """Row and column of every position of the sequence, float32 (T, 2)."""
    width = config.grid_size[1]
    text_row = torch.arange(config.text_len) - config.text_len
    image = torch.arange(config.image_len)
    text = torch.stack([text_row, torch.zeros_like(text_row)], dim=-1)
    return torch.cat([text, torch.stack([image // width, image % width], dim=-1)]).float()


def rotary_angles(config: PriorConfig) -> Tensor:
    """Angles in radians, float32 (T, D / 2): first the pairs that turn by row, then those that turn by column."""
    pairs = config.head_dim // 4
    frequencies = BASE ** (-torch.arange(pairs) / pairs)
    return (positions_2d(config)[..., None] * frequencies).flatten(1)  # (T, 2, D/4) -> (T, D/2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns x (..., T, D), pairing number i with number i + D / 2, by angles whose cos and sin are (T, D / 2)."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat([second, first], dim=-1)
    # Whole vectors at a time: half the operations, and passes over memory, of doing so with each half.
    return torch.addcmul(x * torch.cat([cos, cos], dim=-1), swapped, torch.cat([-sin, sin], dim=-1))
