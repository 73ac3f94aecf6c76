"""In which slot of a cache each key lies: the text in the first L slots, the picture in a ring behind it.

A cache of S slots keeps the key at raster position p in slot L + p % (S - L), a later key in the place of an earlier
one. With S = seq_len that is one slot for each position, and a layer whose pattern reaches less far back needs no more
than `Pattern.cache_len`.

Legend: L text_len, S slots, N new queries.
"""

import torch
from torch import Tensor

from kernels.patterns import Pattern


def cached_slots(pattern: Pattern, slots: int, positions: Tensor) -> Tensor:
    """The slots of the keys at some sequence positions: integers of any shape -> the same shape."""
    ring = slots - pattern.text_len
    in_ring = pattern.text_len + (positions - pattern.text_len) % max(ring, 1)
    return torch.where(positions < pattern.text_len, positions, in_ring)


def cached_positions(
    pattern: Pattern, slots: int, last: int | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """The sequence position whose key each slot holds once `last` has been stored: int64 (S,).

    Text slots name their own position, filled or not, and slots of the ring that were never filled name seq_len: to
    every query so far both lie in the future.
    """
    slot = torch.arange(slots, device=device)
    ring = slots - pattern.text_len
    newest = last - (last - slot) % max(ring, 1)  # of the positions up to `last` that share the slot
    in_ring = torch.where(newest < pattern.text_len, pattern.seq_len, newest)
    return torch.where(slot < pattern.text_len, slot, in_ring)


def check_cached(pattern: Pattern, slots: int, position: int, new: int) -> None:
    """Whether a cache of S slots can hold all that N queries from `position` on see, their own keys included.

    Raises:
        ValueError: positions outside the sequence, more slots than it has positions, or a ring that is too short.
    """
    last = position + new - 1
    if not (0 <= position <= last < pattern.seq_len and slots <= pattern.seq_len):
        raise ValueError(
            f"queries at positions {position}..{last} against {slots} cached keys, expected positions 0.."
            f"{pattern.seq_len - 1} and cached keys <= {pattern.seq_len} (the pattern's length)"
        )
    text_len, reach = pattern.text_len, pattern.seq_len if pattern.reach is None else pattern.reach
    seen = last - text_len - max(0, position - text_len - reach) + 1
    if slots - text_len < seen:
        raise ValueError(
            f"queries at positions {position}..{last} against {slots} cached keys: "
            f"with {text_len} of the text they need {text_len + seen}"
        )
