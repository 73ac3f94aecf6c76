"""Triton kernel of the forward pass; what it does is told in flash.py.

Legend: B batch, H heads, T sequence, D head dim, M queries and N keys of a block; positions count from the start of the
text or of the image. acc, l_i, m_i: output, sum and maximum of the softmax so far.
"""

import triton
import triton.language as tl

from kernels.blocks import LEAST_FLOAT32, dot, keys_of, load, rows_of, store, used_text_keys, walk_keys
from kernels.tiles import tile_positions


@triton.jit
def _attend(state, inputs, k, v, mask, BLOCK: tl.constexpr):
    """Takes a block of keys into the softmax."""
    acc, l_i, m_i = state
    q, scale_log2 = inputs
    scores = dot(q, tl.trans(k), None, BLOCK)  # (M, N)
    if mask is not None:
        scores = tl.where(mask, scores, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    l_i = l_i * alpha + tl.sum(weights, 1)
    acc = dot(weights.to(v.dtype), v, acc * alpha[:, None], BLOCK)
    return (acc, l_i, m_new)


@triton.jit
def _forward_tile(
    queries,
    keys,
    text,
    used_text,
    MASK_TEXT: tl.constexpr,
    o,
    lse,
    tile,
    length,
    scale_log2,
    RULE: tl.constexpr,
    TILING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    q_pos, q_valid = tile_positions(tile, length, TILING, BLOCK.M)
    q = load(queries, q_pos, q_valid, BLOCK)
    M: tl.constexpr = BLOCK.M
    D: tl.constexpr = BLOCK.D
    acc = tl.zeros([M, D], dtype=tl.float32)
    l_i = tl.zeros([M], dtype=tl.float32)
    # The least finite number, as -inf would make -inf - -inf of rows that are masked so far.
    m_i = tl.full([M], LEAST_FLOAT32, dtype=tl.float32)
    acc, l_i, m_i = walk_keys(
        _attend, (acc, l_i, m_i), (q, scale_log2),
        keys, text, used_text, MASK_TEXT, tile, q_pos, length, RULE, TILING, BLOCK,
    )  # fmt: skip
    l_i = tl.where(q_valid, l_i, 1.0)  # rows beyond the image may have seen no key
    store(o, acc / l_i[:, None], q_pos, q_valid, BLOCK)
    tl.store(lse + q_pos, m_i + tl.log2(l_i), mask=q_valid)


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    o,
    lse,
    prefix_lengths,
    n_head,
    text_len,
    image_len,
    text_tiles,
    tiles,
    scale_log2,
    MASK_TEXT: tl.constexpr,
    CAUSAL_RULE: tl.constexpr,
    CAUSAL: tl.constexpr,
    RULE: tl.constexpr,
    IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of queries of one head: the text's tiles and then the image's, from the last to the first.

    q, k, v and o are Heads, lse is (B, H, T).
    """
    pid = tl.program_id(0)
    tile = tiles - 1 - pid % tiles
    batch, head = pid // tiles // n_head, pid // tiles % n_head
    lse += (pid // tiles).to(tl.int64) * (text_len + image_len)
    text = keys_of(k, v, batch, head, 0)
    if tile < text_tiles:
        _forward_tile(
            rows_of(q, batch, head, 0), text, text, 0, False, rows_of(o, batch, head, 0), lse,
            tile, text_len, scale_log2, CAUSAL_RULE, CAUSAL, BLOCK,
        )  # fmt: skip
    else:
        _forward_tile(
            rows_of(q, batch, head, text_len), keys_of(k, v, batch, head, text_len),
            text, used_text_keys(prefix_lengths, batch, text_len), MASK_TEXT,
            rows_of(o, batch, head, text_len), lse + text_len,
            tile - text_tiles, image_len, scale_log2, RULE, IMAGE, BLOCK,
        )  # fmt: skip
