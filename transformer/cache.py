"""Keys and values of the positions already decoded: one pair of static buffers a layer, as long as its mask needs.

Where in a buffer each position lies is said in kernels/cache_layout.py. At 32x32 after 256 text tokens a row layer
keeps 289 keys, a conv layer (11x11) 422 and a column layer all 1280.

Shapes: B batch, H heads, N new positions, S slots, D head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.cache_layout import cached_positions, cached_slots
from kernels.patterns import Pattern


class KVCache:
    """Filled from position 0 on by a first `update`, then position by position: `patterns` holds one mask a layer.

    The buffers are made at each layer's update at position 0, in the dtype and on the device of the keys it brings.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = patterns
        self.keys: list[Tensor | None] = [None] * len(patterns)
        self.values: list[Tensor | None] = [None] * len(patterns)

    def update(self, layer: int, position: int | Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (B, H, N, D) from `position` on; returns what their queries attend over (`attention_step`).

        At position 0, where N may exceed the buffers, these are k and v themselves; later, the buffers (B, H, S, D).
        A `position` that is a 0-d tensor is not 0.
        """
        pattern, new = self.patterns[layer], torch.arange(k.shape[2], device=k.device)
        if isinstance(position, int) and position == 0:
            # Slots that stay empty get a copy of the last key: any finite one will do, as no query sees it.
            held = cached_positions(pattern, pattern.cache_len, len(new) - 1, k.device).clamp(max=len(new) - 1)
            self.keys[layer], self.values[layer] = k.index_select(2, held), v.index_select(2, held)
            return k, v
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None, f"position {position} of layer {layer} before position 0"
        slots = cached_slots(pattern, pattern.cache_len, new + position)
        return keys.index_copy_(2, slots, k), values.index_copy_(2, slots, v)
