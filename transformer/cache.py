"""Keys and values of the positions already decoded: plain static buffers, one pair a layer, as long as the sequence.

Shapes: B batch, H heads, T sequence, N new positions, D head dim.
"""

from torch import Tensor


class KVCache:
    """Grows by `update`; what lies beyond the last update is zero and no query may look there.

    The buffers are made at each layer's first update, in the dtype and on the device of the keys it brings.
    """

    def __init__(self, n_layer: int, seq_len: int) -> None:
        self.seq_len = seq_len
        self.keys: list[Tensor | None] = [None] * n_layer
        self.values: list[Tensor | None] = [None] * n_layer

    def update(self, layer: int, position: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (B, H, N, D) from `position` on and returns all up to their end, (B, H, position + N, D)."""
        end = position + k.shape[2]
        assert end <= self.seq_len, f"positions {position}..{end - 1} in a cache of {self.seq_len}"
        if self.keys[layer] is None:
            batch, heads, _, head_dim = k.shape
            self.keys[layer] = k.new_zeros(batch, heads, self.seq_len, head_dim)
            self.values[layer] = v.new_zeros(batch, heads, self.seq_len, head_dim)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, position:end] = k
        values[:, :, position:end] = v
        return keys[:, :, :end], values[:, :, :end]
