"""Triton kernels of the backward pass; what they do is told in flash.py.

Legend: B batch, H heads, T sequence, D head dim, M queries and N keys of a block; positions count from the start of the
text or of the image. weights = exp2(scores - lse), the softmax; delta = sum(o do); d in front of a name: gradient.
"""

import triton
import triton.language as tl

from kernels.blocks import dot, head_rows, load, store, used_text_keys, walk_keys
from kernels.tiles import span, span_positions, tile_positions


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
    values,
    text_keys,
    text_values,
    used_text,
    MASK_TEXT: tl.constexpr,
    o,
    do,
    dq,
    lse,
    delta,
    tile,
    length,
    scale,
    scale_log2,
    RULE: tl.constexpr,
    TILING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    q_pos, q_valid = tile_positions(tile, length, TILING, BLOCK.M)
    q = load(queries, q_pos, q_valid, BLOCK)
    do_tile = load(do, q_pos, q_valid, BLOCK)
    lse_tile = tl.load(lse + q_pos, mask=q_valid, other=float("inf"))  # of no weight
    delta_tile = tl.sum(load(o, q_pos, q_valid, BLOCK).to(tl.float32) * do_tile.to(tl.float32), 1)
    tl.store(delta + q_pos, delta_tile, mask=q_valid)
    M: tl.constexpr = BLOCK.M
    D: tl.constexpr = BLOCK.D
    state = walk_keys(
        _query_gradient, (tl.zeros([M, D], dtype=tl.float32),),
        (q, do_tile, lse_tile, delta_tile, scale_log2),
        keys, values, text_keys, text_values, used_text, MASK_TEXT, tile, q_pos, length, RULE, TILING, BLOCK,
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
    q_strides,
    k_strides,
    v_strides,
    o_strides,
    do_strides,
    dq_strides,
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
    """dQ and delta of one tile of queries of one head, in the order of the forward kernel."""
    pid = tl.program_id(0)
    tile = tiles - 1 - pid % tiles
    batch, head = pid // tiles // n_head, pid // tiles % n_head
    lse += (pid // tiles).to(tl.int64) * (text_len + image_len)
    delta += (pid // tiles).to(tl.int64) * (text_len + image_len)
    text_keys, text_values = head_rows(k, k_strides, batch, head, 0), head_rows(v, v_strides, batch, head, 0)
    if tile < text_tiles:
        _query_gradient_tile(
            head_rows(q, q_strides, batch, head, 0), text_keys, text_values, text_keys, text_values, 0, False,
            head_rows(o, o_strides, batch, head, 0), head_rows(do, do_strides, batch, head, 0),
            head_rows(dq, dq_strides, batch, head, 0), lse, delta,
            tile, text_len, scale, scale_log2, CAUSAL_RULE, CAUSAL, BLOCK,
        )  # fmt: skip
    else:
        _query_gradient_tile(
            head_rows(q, q_strides, batch, head, text_len),
            head_rows(k, k_strides, batch, head, text_len), head_rows(v, v_strides, batch, head, text_len),
            text_keys, text_values, used_text_keys(prefix_lengths, batch, text_len), MASK_TEXT,
            head_rows(o, o_strides, batch, head, text_len), head_rows(do, do_strides, batch, head, text_len),
            head_rows(dq, dq_strides, batch, head, text_len), lse + text_len, delta + text_len,
            tile - text_tiles, image_len, scale, scale_log2, RULE, IMAGE, BLOCK,
        )  # fmt: skip


@triton.jit
def _key_gradients(state, k, v, queries, do, lse, delta, q_pos, valid, mask, scale_log2, BLOCK: tl.constexpr):
    """Adds a block of queries' share of dK and dV. Queries that are not valid weigh nothing."""
    dk, dv = state
    q = load(queries, q_pos, valid, BLOCK)
    do_block = load(do, q_pos, valid, BLOCK)
    lse_block = tl.load(lse + q_pos, mask=valid, other=float("inf"))
    delta_block = tl.load(delta + q_pos, mask=valid, other=0.0)
    scores = dot(k, tl.trans(q), None, BLOCK)  # (N, M)
    weights = tl.exp2(scores * scale_log2 - lse_block[None, :])
    if mask is not None:
        weights = tl.where(mask, weights, 0.0)
    dv = dot(weights.to(do_block.dtype), do_block, dv, BLOCK)
    dweights = dot(v, tl.trans(do_block), None, BLOCK)
    dscores = weights * (dweights - delta_block[None, :])
    dk = dot(dscores.to(q.dtype), q, dk, BLOCK)
    return (dk, dv)


@triton.jit
def _walk_queries(
    state,
    k,
    v,
    queries,
    do,
    lse,
    delta,
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
        state = _key_gradients(state, k, v, queries, do, lse, delta, q_pos, valid, mask, scale_log2, BLOCK)
    if TILING.DENSE:
        for start in tl.range(end, length, BLOCK.M):
            q_pos = start + offs_m
            state = _key_gradients(state, k, v, queries, do, lse, delta, q_pos, q_pos < length, None, scale_log2, BLOCK)
    return state


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
    q_strides,
    k_strides,
    v_strides,
    do_strides,
    dkv_strides,
    split_stride,
    text_strides,
    n_head,
    text_len,
    image_len,
    text_tiles,
    splits,
    split_len,
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

    Split s of a text tile takes the image queries from s * split_len on; the first takes the text queries as well.
    dk_text and dv_text have a leading dimension of splits.
    """
    pid = tl.program_id(0)
    program = pid % tiles
    batch, head = pid // tiles // n_head, pid // tiles % n_head
    lse += (pid // tiles).to(tl.int64) * (text_len + image_len)
    delta += (pid // tiles).to(tl.int64) * (text_len + image_len)
    image_queries, image_do = (
        head_rows(q, q_strides, batch, head, text_len),
        head_rows(do, do_strides, batch, head, text_len),
    )
    N: tl.constexpr = BLOCK.N
    D: tl.constexpr = BLOCK.D
    state = (tl.zeros([N, D], dtype=tl.float32), tl.zeros([N, D], dtype=tl.float32))
    if program < text_tiles * splits:
        tile, split = program // splits, program % splits
        k_pos, valid = tile_positions(tile, text_len, CAUSAL, BLOCK.N)
        k_tile = load(head_rows(k, k_strides, batch, head, 0), k_pos, valid, BLOCK)
        v_tile = load(head_rows(v, v_strides, batch, head, 0), k_pos, valid, BLOCK)
        used_text = used_text_keys(prefix_lengths, batch, text_len)
        end = tl.minimum((split + 1) * split_len, image_len)
        if tile * BLOCK.N >= used_text:
            end = 0
        for start in tl.range(split * split_len, end, BLOCK.M):
            q_pos = start + tl.arange(0, BLOCK.M)
            state = _key_gradients(
                state, k_tile, v_tile, image_queries, image_do, lse + text_len, delta + text_len,
                q_pos, q_pos < end, None, scale_log2, BLOCK,
            )  # fmt: skip
        # Keys that are not in use were not masked, as this clears what they gathered.
        in_use = (k_pos < used_text)[:, None]
        state = (tl.where(in_use, state[0], 0.0), tl.where(in_use, state[1], 0.0))
        text_end = text_len
        if split > 0:
            text_end = 0
        state = _walk_queries(
            state, k_tile, v_tile, head_rows(q, q_strides, batch, head, 0), head_rows(do, do_strides, batch, head, 0),
            lse, delta, tile, k_pos, text_end, scale_log2, CAUSAL_RULE, CAUSAL, BLOCK,
        )  # fmt: skip
        dk_text += split.to(tl.int64) * split_stride
        dv_text += split.to(tl.int64) * split_stride
        store(head_rows(dk_text, text_strides, batch, head, 0), state[0] * scale, k_pos, valid, BLOCK)
        store(head_rows(dv_text, text_strides, batch, head, 0), state[1], k_pos, valid, BLOCK)
    else:
        tile = program - text_tiles * splits
        k_pos, valid = tile_positions(tile, image_len, IMAGE, BLOCK.N)
        k_tile = load(head_rows(k, k_strides, batch, head, text_len), k_pos, valid, BLOCK)
        v_tile = load(head_rows(v, v_strides, batch, head, text_len), k_pos, valid, BLOCK)
        state = _walk_queries(
            state, k_tile, v_tile, image_queries, image_do, lse + text_len, delta + text_len,
            tile, k_pos, image_len, scale_log2, RULE, IMAGE, BLOCK,
        )  # fmt: skip
        store(head_rows(dk, dkv_strides, batch, head, text_len), state[0] * scale, k_pos, valid, BLOCK)
        store(head_rows(dv, dkv_strides, batch, head, text_len), state[1], k_pos, valid, BLOCK)
