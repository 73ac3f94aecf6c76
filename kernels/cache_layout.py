"""How keys and values are kept while a picture is decoded: the text's for all its samples once, the image's in a ring.

    text     (P, H, L, D)   the keys of P texts, each of which B / P samples in a row share
    image    (B, H, R, D)   raster position p in slot p % R, a later key in the place of an earlier one

With R = image_len that is one slot for each position; a layer whose pattern reaches less far back needs no more than
`Pattern.ring_len`.

Legend: B batch, P texts, H heads, L text_len, R slots of the ring, N new queries, D head dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.patterns import Pattern


class KeysValues(NamedTuple):
    """Keys and values of one shape (B or P, H, positions, D)."""

    k: Tensor
    v: Tensor


def ring_positions(slots: int, last: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """The raster position whose key each of R slots holds once `last` has been stored: int64 (R,).

    Negative where a slot was never filled.
    """
    return last - (last - torch.arange(slots, device=device)) % slots


def check_ring(pattern: Pattern, slots: int, index: int, new: int) -> None:
    """Whether a ring of R slots holds all that N queries from raster position `index` on see, their own keys included.

    Raises:
        ValueError: positions outside the image, more slots than it has positions, or a ring that is too short.
    """
    last, image_len = index + new - 1, pattern.image_len
    if not (0 <= index <= last < image_len and slots <= image_len):
        raise ValueError(
            f"queries at raster positions {index}..{last} against {slots} image keys, expected positions 0.."
            f"{image_len - 1} and image keys <= {image_len} (the pattern's image)"
        )
    reach = image_len if pattern.reach is None else pattern.reach
    seen = last - max(0, index - reach) + 1
    if slots < seen:
        raise ValueError(
            f"queries at raster positions {index}..{last} against {slots} image keys, expected at least {seen}"
        )
