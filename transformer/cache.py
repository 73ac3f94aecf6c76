"""Keys and values already computed: each text's once for all its samples, of each picture as many as its masks need.

Where in a ring each position lies is said in kernels/cache_layout.py. At 32x32 a row layer's ring keeps 33 image keys,
a conv layer's (11x11) 166 and a column layer's all 1024.

Shapes: B batch, P texts, H heads, N new positions, R slots, D head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.cache_layout import KeysValues, ring_positions
from kernels.patterns import Pattern


class KVCache:
    """Filled by `store_text`, once a layer, then by `update`: `patterns` holds one mask a layer.

    Args:
        patterns: one mask a layer.
        owners: int64 (P,), which row of what `store_text` is given is text p; B / P samples in a row share each.
        batch_size: B.
        dtype: of the buffers; None: that of the keys.
    """

    def __init__(
        self, patterns: Sequence[Pattern], owners: Tensor, batch_size: int, dtype: torch.dtype | None = None
    ) -> None:
        self.patterns, self.owners, self.batch_size, self.dtype = patterns, owners, batch_size, dtype
        self.text: list[KeysValues] = []
        self.image: list[KeysValues] = []

    def store_text(self, k: Tensor, v: Tensor) -> None:
        """The next layer's text: k and v (rows, H, text_len, D). Its ring is made, all zeros."""
        k, v = (x.to(self.dtype or x.dtype).index_select(0, self.owners) for x in (k, v))
        pattern, (_, heads, _, head_dim) = self.patterns[len(self.text)], k.shape
        ring = self.batch_size, heads, pattern.ring_len, head_dim
        self.text.append(KeysValues(k, v))
        self.image.append(KeysValues(k.new_zeros(ring), v.new_zeros(ring)))

    def update(self, layer: int, index: int | Tensor, k: Tensor, v: Tensor) -> KeysValues:
        """Stores k and v (B, H, N, D) from raster position `index` on; returns what their queries attend over.

        At position 0, where N may exceed the ring, these are k and v themselves; later, the ring (B, H, R, D).
        An `index` that is a 0-d tensor is not 0.
        """
        assert layer < len(self.image), f"image keys of layer {layer} before its text"
        new = KeysValues(k.to(self.image[layer].k.dtype), v.to(self.image[layer].v.dtype))
        ring = self.image[layer]
        count, slots = k.shape[2], ring.k.shape[2]
        if isinstance(index, int) and index == 0:
            held = ring_positions(min(slots, count), count - 1, k.device)
            for buffer, x in zip(ring, new, strict=True):
                buffer[:, :, : len(held)] = x.index_select(2, held)
            return new
        where = (torch.arange(count, device=k.device) + index) % slots
        return KeysValues(ring.k.index_copy_(2, where, new.k), ring.v.index_copy_(2, where, new.v))
