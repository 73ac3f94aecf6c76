"""Triton kernels of the backward pass; what they do is told in flash.py.

Legend: B batch, H heads, T sequence, L text_len, D head dim, M queries and N keys of a block; positions count from the
start of the text or of the image. weights = exp2(scores - lse), the softmax; delta = sum(o do); d in front of a name:
gradient.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.blocks import Heads, Rows, dot, keys_of, load, rows_of, store, used_text_keys, walk_keys
from kernels.tiles import span, span_positions, tile_positions


class _Queries(NamedTuple):
    """The queries of one head's text or image and what their gradients take (device side)."""

    q: Rows
    do: Rows
    lse: Any
    delta: Any


@triton.jit
def _queries_of(q, do, lse, delta, batch, head, start):
    """From sequence position `start` on, of Heads q and do and of one head's lse and delta."""
    return _Queries(rows_of(q, batch, head, start), rows_of(do, batch, head, start), lse + start, delta + start)


@triton.jit
def _query_gradient(state, inputs, k, v, mask, BLOCK: tl.constexpr):
    """Adds a block of keys' share of dQ."""
    q, do, lse, delta, scale_log2 = inputs
    scores = dot(q, tl.trans(k), None, BLOCK)  # (M, N)
    weights = tl.exp2(scores * scale_log2 - lse[:, None])
    if mask is not None:
        weights = tl.where(mask, weights, 0.0)
    dweights = dot(do, tl.trans(v), None, BLOCK)
    dscores = weights * (dweights - delta[:, None])
    return (dot(dscores.to(k.dtype), k, state[0], BLOCK),)


@triton.jit
def _query_gradient_tile(
    queries,
    keys,
    text,
    used_text,
    MASK_TEXT: tl.constexpr,
    o,
    dq,
    tile,
    length,
    scale,
    scale_log2,
    RULE: tl.constexpr,
    TILING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    q_pos, q_valid = tile_positions(tile, length, TILING, BLOCK.M)
    q = load(queries.q, q_pos, q_valid, BLOCK)
    do = load(queries.do, q_pos, q_valid, BLOCK)
    lse = tl.load(queries.lse + q_pos, mask=q_valid, other=float("inf"))  # of no weight
    delta = tl.sum(load(o, q_pos, q_valid, BLOCK).to(tl.float32) * do.to(tl.float32), 1)
    tl.store(queries.delta + q_pos, delta, mask=q_valid)
    M: tl.constexpr = BLOCK.M
    D: tl.constexpr = BLOCK.D
    state = walk_keys(
        _query_gradient, (tl.zeros([M, D], dtype=tl.float32),), (q, do, lse, delta, scale_log2),
        keys, text, used_text, MASK_TEXT, tile, q_pos, length, RULE, TILING, BLOCK,
    )  # fmt: skip
    store(dq, state[0] * scale, q_pos, q_valid, BLOCK)


@triton.jit
def query_gradient_kernel(
    q,
    k,
    v,
    o,
    do,
    dq,
    lse,
    delta,
    prefix_lengths,
    n_head,
    text_len,
    image_len,
    text_tiles,
    tiles,
    scale,
    scale_log2,
    MASK_TEXT: tl.constexpr,
    CAUSAL_RULE: tl.constexpr,
    CAUSAL: tl.constexpr,
    RULE: tl.constexpr,
    IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dQ and delta of one tile of queries of one head, in the order of the forward kernel.

    q, k, v, o, do and dq are Heads, lse and delta (B, H, T).
    """
    pid = tl.program_id(0)
    tile = tiles - 1 - pid % tiles
    batch, head = pid // tiles // n_head, pid // tiles % n_head
    lse += (pid // tiles).to(tl.int64) * (text_len + image_len)
    delta += (pid // tiles).to(tl.int64) * (text_len + image_len)
    text = keys_of(k, v, batch, head, 0)
    if tile < text_tiles:
        _query_gradient_tile(
            _queries_of(q, do, lse, delta, batch, head, 0), text, text, 0, False,
            rows_of(o, batch, head, 0), rows_of(dq, batch, head, 0),
            tile, text_len, scale, scale_log2, CAUSAL_RULE, CAUSAL, BLOCK,
        )  # fmt: skip
    else:
        _query_gradient_tile(
            _queries_of(q, do, lse, delta, batch, head, text_len), keys_of(k, v, batch, head, text_len),
            text, used_text_keys(prefix_lengths, batch, text_len), MASK_TEXT,
            rows_of(o, batch, head, text_len), rows_of(dq, batch, head, text_len),
            tile - text_tiles, image_len, scale, scale_log2, RULE, IMAGE, BLOCK,
        )  # fmt: skip


@triton.jit
def _key_gradients(state, k, v, queries, q_pos, valid, mask, scale_log2, BLOCK: tl.constexpr):
    """Adds a block of queries' share of dK and dV. Queries that are not valid weigh nothing."""
    dk, dv = state
    q = load(queries.q, q_pos, valid, BLOCK)
    do = load(queries.do, q_pos, valid, BLOCK)
    lse = tl.load(queries.lse + q_pos, mask=valid, other=float("inf"))
    delta = tl.load(queries.delta + q_pos, mask=valid, other=0.0)
    scores = dot(k, tl.trans(q), None, BLOCK)  # (N, M)
    weights = tl.exp2(scores * scale_log2 - lse[None, :])
    if mask is not None:
        weights = tl.where(mask, weights, 0.0)
    dv = dot(weights.to(do.dtype), do, dv, BLOCK)
    dweights = dot(v, tl.trans(do), None, BLOCK)
    dscores = weights * (dweights - delta[None, :])
    dk = dot(dscores.to(q.dtype), q, dk, BLOCK)
    return (dk, dv)


@triton.jit
def _walk_queries(
    state,
    k,
    v,
    queries,
    tile,
    k_pos,
    length,
    scale_log2,
    RULE: tl.constexpr,
    TILING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The queries of their own kind that a tile of keys is seen by."""
    offs_m = tl.arange(0, BLOCK.M)
    first, end = span(tile, length, TILING, BLOCK.N, True)
    for start in tl.range(first, end, BLOCK.M):
        q_pos, valid = span_positions(start + offs_m, end, tile, length, TILING)
        mask = RULE(q_pos[None, :], k_pos[:, None], TILING.WIDTH, TILING.HALF) & valid[None, :]
        state = _key_gradients(state, k, v, queries, q_pos, valid, mask, scale_log2, BLOCK)
    if TILING.DENSE:
        for start in tl.range(end, length, BLOCK.M):
            q_pos = start + offs_m
            state = _key_gradients(state, k, v, queries, q_pos, q_pos < length, None, scale_log2, BLOCK)
    return state


@triton.jit
def _no_gradients(BLOCK: tl.constexpr):
    N: tl.constexpr = BLOCK.N
    D: tl.constexpr = BLOCK.D
    return (tl.zeros([N, D], dtype=tl.float32), tl.zeros([N, D], dtype=tl.float32))


@triton.jit
def _image_tile(
    queries,
    keys,
    gradients,
    tile,
    length,
    scale,
    scale_log2,
    RULE: tl.constexpr,
    TILING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dK and dV of a tile of image keys; `gradients` are the Keys to write to."""
    k_pos, valid = tile_positions(tile, length, TILING, BLOCK.N)
    k, v = load(keys.k, k_pos, valid, BLOCK), load(keys.v, k_pos, valid, BLOCK)
    state = _walk_queries(
        _no_gradients(BLOCK), k, v, queries, tile, k_pos, length, scale_log2, RULE, TILING, BLOCK
    )  # fmt: skip
    store(gradients.k, state[0] * scale, k_pos, valid, BLOCK)
    store(gradients.v, state[1], k_pos, valid, BLOCK)


@triton.jit
def _text_tile(
    text_queries,
    image_queries,
    keys,
    gradients,
    used_text,
    tile,
    first,
    end,
    length,
    scale,
    scale_log2,
    CAUSAL_RULE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dK and dV of a tile of text keys by the image queries first .. end - 1 and, where first is 0, the text's."""
    k_pos, valid = tile_positions(tile, length, CAUSAL, BLOCK.N)
    k, v = load(keys.k, k_pos, valid, BLOCK), load(keys.v, k_pos, valid, BLOCK)
    if tile * BLOCK.N >= used_text:
        end = 0
    state = _no_gradients(BLOCK)
    for start in tl.range(first, end, BLOCK.M):
        q_pos = start + tl.arange(0, BLOCK.M)
        state = _key_gradients(state, k, v, image_queries, q_pos, q_pos < end, None, scale_log2, BLOCK)
    # Keys that are not in use were not masked, as this clears what they gathered.
    in_use = (k_pos < used_text)[:, None]
    state = (tl.where(in_use, state[0], 0.0), tl.where(in_use, state[1], 0.0))
    text_end = length
    if first > 0:
        text_end = 0
    state = _walk_queries(
        state, k, v, text_queries, tile, k_pos, text_end, scale_log2, CAUSAL_RULE, CAUSAL, BLOCK
    )  # fmt: skip
    store(gradients.k, state[0] * scale, k_pos, valid, BLOCK)
    store(gradients.v, state[1], k_pos, valid, BLOCK)


@triton.jit
def key_gradient_kernel(
    q,
    k,
    v,
    do,
    dk,
    dv,
    dk_text,
    dv_text,
    lse,
    delta,
    prefix_lengths,
    n_head,
    text_len,
    image_len,
    text_tiles,
    splits,
    split_len,
    split_stride,
    tiles,
    scale,
    scale_log2,
    CAUSAL_RULE: tl.constexpr,
    CAUSAL: tl.constexpr,
    RULE: tl.constexpr,
    IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dK and dV of one tile of keys of one head: first the text's tiles, `splits` programs each, then the image's.

    Split s of a text tile takes the image queries from s * split_len on; the first takes the text queries as well, and
    each writes a part of its own. dk_text is Heads of the first part, (B, H, L, D); the parts lie `split_stride`
    elements apart. dk is Heads too, of which the image's rows are written; dv and dv_text are laid out as dk and
    dk_text are.
    """
    pid = tl.program_id(0)
    program = pid % tiles
    batch, head = pid // tiles // n_head, pid // tiles % n_head
    lse += (pid // tiles).to(tl.int64) * (text_len + image_len)
    delta += (pid // tiles).to(tl.int64) * (text_len + image_len)
    image_queries = _queries_of(q, do, lse, delta, batch, head, text_len)
    if program < text_tiles * splits:
        tile, split = program // splits, program % splits
        first, part = split * split_len, split.to(tl.int64) * split_stride
        dk_part = Heads(dk_text.pointer + part, dk_text.strides)
        dv_part = Heads(dv_text + part, dk_text.strides)
        _text_tile(
            _queries_of(q, do, lse, delta, batch, head, 0), image_queries,
            keys_of(k, v, batch, head, 0), keys_of(dk_part, dv_part, batch, head, 0),
            used_text_keys(prefix_lengths, batch, text_len), tile, first, tl.minimum(first + split_len, image_len),
            text_len, scale, scale_log2, CAUSAL_RULE, CAUSAL, BLOCK,
        )  # fmt: skip
    else:
        _image_tile(
            image_queries, keys_of(k, v, batch, head, text_len),
            keys_of(dk, Heads(dv, dk.strides), batch, head, text_len),
            program - text_tiles * splits, image_len, scale, scale_log2, RULE, IMAGE, BLOCK,
        )  # fmt: skip
