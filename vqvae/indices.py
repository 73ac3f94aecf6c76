"""What all image tokenizers ask of the indices that they are to decode."""

import torch
from torch import Tensor


def check_indices(indices: Tensor, codebook_size: int) -> None:
    """Raises ValueError unless they are (B, h, w) int64 in [0, codebook_size)."""
    if indices.ndim != 3 or indices.dtype != torch.int64:
        raise ValueError(
            f"indices have shape {tuple(indices.shape)} and dtype {indices.dtype}, expected (B, h, w) int64"
        )
    if indices.numel() and not (indices.min() >= 0 and indices.max() < codebook_size):
        raise ValueError(
            f"indices run from {int(indices.min())} to {int(indices.max())}, expected 0 to {codebook_size - 1}"
        )
