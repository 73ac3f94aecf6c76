"""Multi-head self-attention, over the whole sequence at once or over a cache.

The projection is packed and q, k and v are strided views of it. The kernels take any strides; the structured one merges
batch and heads of longer sequences, which copies what is strided (kernels/structured.py).
QK-norm (after https://arxiv.org/abs/2302.05442) bounds the scores, which keeps bf16 stable: a LayerNorm of each head
without bias, which CPUs have as one operation where an RMSNorm is many.

Shapes: B batch, T sequence, N new positions, H heads, D head dim, C = H * D.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kernels.attention import attention
from kernels.patterns import Pattern
from kernels.step import attention_step
from transformer.cache import KVCache
from transformer.config import NORM_EPS, PriorConfig
from transformer.rotary import rotate

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each (B, H, N, D) -> (B, H, N, D): hides from the blocks where older keys come from."""


def attend_sequence(patterns: Sequence[Pattern], prefix_lengths: Tensor | None) -> Attend:
    """Attention over the whole sequence, N = T; `patterns` holds one mask a layer."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, patterns[layer], prefix_lengths=prefix_lengths)

    return attend


def attend_text(cache: KVCache) -> Attend:
    """Attention of texts over themselves, which is causal under all masks; the cache takes in their keys.

    Layers have to come in order.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.store_text(k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def attend_image(
    patterns: Sequence[Pattern], prefix_lengths: Tensor | None, cache: KVCache, index: int | Tensor
) -> Attend:
    """Attention of N image positions, from raster position `index` on, over the cache, which takes in their keys."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        image = cache.update(layer, index, k, v)
        q = q.to(image.k.dtype)
        return attention_step(q, cache.text[layer], image, patterns[layer], index, prefix_lengths=prefix_lengths)

    return attend


class RotaryNorm(nn.Module):
    """What the modern block does to queries and keys: normalise each head, then turn by position."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.q_gain = nn.Parameter(torch.ones(head_dim))
        self.k_gain = nn.Parameter(torch.ones(head_dim))

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return _normalise(q, self.q_gain, cos, sin), _normalise(k, self.k_gain, cos, sin)


def _normalise(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Under autocast x is bf16 and its norm float32; q and k are turned in bf16, which is half the traffic.
    dtype = x.dtype
    x_hat = F.layer_norm(x, gain.shape, gain, eps=NORM_EPS).to(dtype)
    return rotate(x_hat, cos.to(dtype), sin.to(dtype))


class SelfAttention(nn.Module):
    """Projections around attention: (B, N, C) -> (B, N, C). The paper's has biases; the modern one has none."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        modern = config.block == "modern"
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=not modern)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=not modern)
        self.rotary_norm = RotaryNorm(config.head_dim) if modern else None

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Callable[..., Tensor]) -> Tensor:
        """`rotary`: cos and sin (N, D / 2) of the positions of x; `attend`: an Attend whose layer is bound."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.n_head)
        if self.rotary_norm is not None:
            q, k = self.rotary_norm(q, k, *rotary)
        attended = attend(q, k, v).to(q.dtype)  # caches may be narrower
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))
