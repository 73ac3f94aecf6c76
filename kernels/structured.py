"""Sparse attention in plain torch: only the keys that a row, column or window needs, never a (T, T) tensor.

The queries are cut into tiles, and each group of equal tiles is one call of PyTorch's fused attention on strided views:

    all queries x text keys          causal, which for image queries is all of them
    image queries x image keys       row, conv: bands against themselves and the keys in reach before them (a window
                                     that overlaps the next band's); column: each column against itself

Image queries thus see two sets of keys in two calls. A softmax over the union follows from the two outputs and their
log-sum-exps (lse), as in online softmax, https://arxiv.org/abs/1805.02867:

    o = (e^lse1 o1 + e^lse2 o2) / (e^lse1 + e^lse2)

Backwards, each call recomputes its weights with the joint lse and takes delta = sum(o * do) of the joint output: its
gradients then are exact parts of the whole, to be added up, and no call needs to know of the other.

Legend: B batch, H heads, N = B * H, T sequence, D head dim, W windows of M queries or S keys each.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from kernels.patterns import Pattern, attends_image, attention_mask

# A score that drops out of any softmax. Finite, so that a query whose every text key is masked gets a meaningless but
# finite output with weight exp(-1e30) = 0, where infinity would give inf - inf.
MASKED = -1e30
# Shortest tile of queries: PyTorch's CPU kernel works on blocks of 32 queries, shorter tiles leave them part empty.
# Where tiles see more than twice as many keys before them, they are twice as long (conv at 32x32: 40.2 ms, 38.2 so).
MIN_TILE = 32
# Up to this many positions one masked call over the whole sequence beats several over its parts (measured, README.md).
MAX_SINGLE_TILE = 224
# About the most that one call may return in a tensor, in bytes. Larger ones leave the cache, and the system takes their
# memory back each time: windows that overlap return a key's gradients several times, conv at 32x32 in bands of one row
# six times, 10 MB for 8 heads of 64, which took 15 ms in one call and 11 in four.
MAX_RETURNED = 2**21
# But a text call has at least this many queries, from which on the kernel takes its largest blocks.
MIN_TEXT_TILE = 768
# In these, the backward pass of PyTorch's CPU kernel takes three to ten times its forward pass; plain matrix products
# are quicker (one thread, B=64, H=4, D=64, 84 positions: 68 ms in all with the one, 23 ms with the others).
SLOW_BACKWARD = frozenset({torch.bfloat16, torch.float16})
# So they are taken for longer sequences: at 288 positions a training step of 4 layers of width 256 (one thread, B=32)
# went from 1.99 to 1.51 s. Longer ones were not measured.
MAX_WRITTEN_OUT = 288
# Devices whose fused kernel returns the log-sum-exp and takes any additive mask; elsewhere the scores are written out.
FUSED_DEVICES = frozenset({"cpu"})


class Windows(NamedTuple):
    """`count` windows over the positions of a sequence: window i holds start + i * step + j * stride, j < length."""

    start: int
    count: int
    length: int
    step: int
    stride: int = 1

    @classmethod
    def one(cls, start: int, length: int) -> "Windows":
        return cls(start, 1, length, length)

    def some(self, first: int, count: int) -> "Windows":
        """At most `count` of them from number `first` on."""
        return self._replace(start=self.start + first * self.step, count=min(count, self.count - first))

    def of(self, x: Tensor) -> Tensor:
        """(N, T, ...) -> a view (N, count, length, ...)."""
        batch, seq, *rest = x.stride()
        shape = (x.shape[0], self.count, self.length, *x.shape[2:])
        strides = (batch, seq * self.step, seq * self.stride, *rest)
        return x[:, self.start :].as_strided(shape, strides)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add x (N, count, length, ...) to the positions of `total` (N, T, ...) that it was cut from.

        Windows longer than their step overlap: they are added in pieces of one step, within which no two overlap.
        """
        piece = self.step if self.stride == 1 else self.length
        for first in range(0, self.length, piece):
            length = min(piece, self.length - first)
            target = self._replace(start=self.start + first, length=length).of(total)
            target += x[:, :, first : first + length]


class Part(NamedTuple):
    """One call of the fused kernel: windows of queries against as many windows of keys.

    `mask` is additive, float32 or float64, and broadcasts to (N, W, M, S).
    """

    queries: Windows
    keys: Windows
    mask: Tensor | None = None
    is_causal: bool = False

    def pieces(self, row_bytes: int) -> Iterator["Part"]:
        """The same in calls that return little at a time; `row_bytes`: of one position of all heads."""
        window_bytes = max(self.queries.length, self.keys.length) * row_bytes
        count = max(1, MAX_RETURNED // window_bytes)
        for first in range(0, self.queries.count, count):
            yield self._replace(queries=self.queries.some(first, count), keys=self.keys.some(first, count))


class Plan(NamedTuple):
    """`first` covers every query once; `then` adds more keys to some of them, once to each."""

    first: list[Part]
    then: list[Part]


def attention_structured(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
) -> Tensor:
    """Attention under `pattern` at the cost of the pairs it attends to. Once differentiable in q, k and v.

    Args:
        q, k, v: (B, H, T, D) with T = pattern.seq_len, any strides.
        scale: factor on the scores; None: 1 / sqrt(D).
        prefix_lengths: (B,) integers; image queries of sample b see only its first n text keys. None: all.

    Returns:
        (B, H, T, D).
    """
    write_out = q.dtype in SLOW_BACKWARD and q.device.type == "cpu" and torch.is_grad_enabled()
    if pattern.seq_len <= (MAX_WRITTEN_OUT if write_out else MAX_SINGLE_TILE):
        positions = torch.arange(pattern.seq_len, device=q.device)
        mask = attention_mask(pattern, positions, positions, prefix_lengths)
        if write_out:
            return _written_out(q, k, v, mask, scale)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if prefix_lengths is None and pattern.kind == "causal":
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return _tiled_attention(q, k, v, pattern, scale, prefix_lengths)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention of a short sequence by plain matrix products; every query must see a key.

    The scores stay in the dtype of q, which halves the traffic: the softmax sums in float32 all the same.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    seq_len = q.shape[-2]
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)
    bias = bias.expand(*q.shape[:2], seq_len, seq_len).flatten(0, 1)
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(-2, -1), alpha=scale)  # (B * H, T, T)
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).unflatten(0, q.shape[:2])


# A compiler has nothing to gain in here, and turns writes into overlapping views into copies of the whole.
@torch.compiler.disable
def _tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float, prefix_lengths: Tensor | None
) -> Tensor:
    plan = _plan(pattern, q, prefix_lengths)
    o = _PlannedAttention.apply(_merge_heads(q), _merge_heads(k), _merge_heads(v), scale, plan)
    return o.unflatten(0, q.shape[:2])


def _merge_heads(x: Tensor) -> Tensor:
    # The copy that strided inputs need here costs about 1% of the attention.
    x = x.flatten(0, 1)  # (N, T, D)
    return x if x.stride(-1) == 1 else x.contiguous()


def _plan(pattern: Pattern, q: Tensor, prefix_lengths: Tensor | None) -> Plan:
    row_bytes = q[:, :, 0].numel() * torch.promote_types(q.dtype, torch.float32).itemsize
    image = [piece for part in _image_parts(pattern, q) for piece in part.pieces(row_bytes)]
    tile = max(MIN_TEXT_TILE, MAX_RETURNED // row_bytes)
    if prefix_lengths is None:
        # Causal from the start on, which for image queries is all of the text: the text's queries go with them.
        head = Windows.one(0, min(pattern.text_len + tile, pattern.seq_len))
        first = Part(head, Windows.one(0, pattern.text_len), is_causal=True)
        return Plan([first, *_text_parts(pattern, head.length, tile, pattern.text_len)], image)
    whole_text = Windows.one(0, pattern.text_len)
    first = Part(whole_text, whole_text, is_causal=True)
    # Only on a CPU does reading the lengths cost no wait for the device.
    length = int(prefix_lengths.max()) if q.device.type == "cpu" else pattern.text_len
    if length == 0:
        return Plan([first, *image], [])
    used = torch.arange(length, device=q.device) < prefix_lengths[:, None]  # (B, S)
    mask = _additive(used, q.dtype).repeat_interleave(q.shape[1], dim=0)[:, None, None]  # (N, 1, 1, S)
    return Plan([first, *_text_parts(pattern, pattern.text_len, tile, length, mask)], image)


def _text_parts(pattern: Pattern, start: int, tile: int, length: int, mask: Tensor | None = None) -> Iterator[Part]:
    """The image queries from sequence position `start` on, `tile` at a time, against the first `length` text keys."""
    for first in range(start, pattern.seq_len, tile):
        yield Part(Windows.one(first, min(tile, pattern.seq_len - first)), Windows.one(0, length), mask)


def _image_parts(pattern: Pattern, q: Tensor) -> list[Part]:
    if pattern.kind == "column":
        columns = Windows(pattern.text_len, pattern.width, pattern.height, step=1, stride=pattern.width)
        return [Part(columns, columns, is_causal=True)]
    if pattern.kind == "causal":
        image = Windows.one(pattern.text_len, pattern.image_len)
        return [Part(image, image, is_causal=True)]
    return _band_parts(pattern, q)


def _band_parts(pattern: Pattern, q: Tensor) -> list[Part]:
    """Bands of queries, of whole grid rows unless the rule looks the same from everywhere, against the keys in reach.

    The first queries, whose reach would leave the image, are one tile of their own, the head. The others are alike, so
    that one small mask serves them all. The head also takes the queries that do not fill a band.
    """
    text_len, image_len = pattern.text_len, pattern.image_len
    reach = image_len - 1 if pattern.reach is None else pattern.reach
    unit = 1 if pattern.rule.by_offset else pattern.width
    band = unit * math.ceil((MIN_TILE if reach <= 2 * MIN_TILE else 2 * MIN_TILE) / unit)
    head_len = min(unit * math.ceil(reach / unit), image_len)
    head_len += (image_len - head_len) % band
    bands = (image_len - head_len) // band

    parts = []
    if head_len:  # none where a query sees itself only
        head = Windows.one(text_len, head_len)
        parts.append(Part(head, head, _image_mask(pattern, head, head, q)))
    if bands:
        start = text_len + head_len
        queries = Windows(start, bands, band, band)
        keys = Windows(start - reach, bands, reach + band, band)
        parts.append(Part(queries, keys, _image_mask(pattern, queries, keys, q)))
    return parts


def _image_mask(pattern: Pattern, queries: Windows, keys: Windows, like: Tensor) -> Tensor:
    """The additive mask (M, S) of the first window, which the pattern's rule repeats in all others."""
    q_pos = torch.arange(queries.length, device=like.device) + queries.start - pattern.text_len
    k_pos = torch.arange(keys.length, device=like.device) + keys.start - pattern.text_len
    return _additive(attends_image(pattern, q_pos[:, None], k_pos), like.dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros_like(mask, dtype=torch.promote_types(dtype, torch.float32))
    return zeros.masked_fill_(~mask, MASKED)


class _PlannedAttention(torch.autograd.Function):
    """Runs a plan on q, k, v of shape (N, T, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, plan: Plan) -> Tensor:
        o = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        for part in plan.first:
            part_o, part_lse = _forward_part(part, q, k, v, scale)
            part.queries.of(o).copy_(part_o)
            part.queries.of(lse).copy_(part_lse)
        for part in plan.then:
            part_o, part_lse = _forward_part(part, q, k, v, scale)
            _merge_softmax(part.queries.of(o), part.queries.of(lse), part_o, part_lse)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.scale, ctx.plan = scale, plan
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        do = do.contiguous()
        dq = torch.empty_like(q, dtype=lse.dtype, memory_format=torch.contiguous_format)
        dk, dv = (torch.zeros_like(x, dtype=lse.dtype, memory_format=torch.contiguous_format) for x in (k, v))
        for parts, into in ((ctx.plan.first, Tensor.copy_), (ctx.plan.then, Tensor.add_)):
            for part in parts:
                part_dq, part_dk, part_dv = _backward_part(part, do, q, k, v, o, lse, ctx.scale)
                into(part.queries.of(dq), part_dq)
                part.keys.add_to(dk, part_dk)
                part.keys.add_to(dv, part_dv)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _merge_softmax(o: Tensor, lse: Tensor, other_o: Tensor, other_lse: Tensor) -> None:
    """Take `other`'s keys into the softmax whose output (N, W, M, D) and lse (N, W, M) are updated in place."""
    weight = torch.sigmoid(other_lse - lse)[..., None]  # (N, W, M, 1)
    o.copy_(torch.lerp(o.to(weight.dtype), other_o.to(weight.dtype), weight))
    lse.copy_(torch.logaddexp(lse, other_lse))


def _forward_part(part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns o (N, W, M, D) and lse (N, W, M) of one part."""
    q, k, v = part.queries.of(q), part.keys.of(k), part.keys.of(v)
    if q.device.type in FUSED_DEVICES:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, part.is_causal, attn_mask=part.mask, scale=scale
        )
    scores = _scores(part, q, k, scale)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def _backward_part(
    part: Part, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq (N, W, M, D), dk and dv (N, W, S, D): one part's share, given the joint o and lse."""
    do, q, o, lse = (part.queries.of(x) for x in (do, q, o, lse))
    k, v = part.keys.of(k), part.keys.of(v)
    if q.device.type in FUSED_DEVICES:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            do, q, k, v, o, lse, 0.0, part.is_causal, attn_mask=part.mask, scale=scale
        )
    weights = (_scores(part, q, k, scale) - lse[..., None]).exp()  # (N, W, M, S)
    delta = (do * o).sum(dim=-1, dtype=lse.dtype, keepdim=True)  # (N, W, M, 1)
    dscores = (scale * weights * ((do @ v.transpose(-2, -1)).to(lse.dtype) - delta)).to(q.dtype)
    return dscores @ k, dscores.transpose(-2, -1) @ q, weights.to(do.dtype).transpose(-2, -1) @ do


def _scores(part: Part, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The scores (N, W, M, S) in at least float32, for devices without a fused kernel that returns its lse."""
    scores = (scale * q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32))
    if part.is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, MASKED)
    return scores if part.mask is None else scores + part.mask
