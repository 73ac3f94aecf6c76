"""Triton kernels of one decoding step; what they do is told in decode.py.

Legend: B batch, H heads, S slots, N new queries, D head dim; M queries and N keys of a block. acc, l_i, m_i: output,
sum and maximum of the softmax so far, in base 2.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.blocks import LEAST_FLOAT32, Rows, dot, keys_of, load, rows_of, store, used_text_keys


class _List(NamedTuple):
    """The list of keys that the queries may see: first text keys, then local ones (device side)."""

    text_keys: Any
    entries: Any
    """Of text and local keys together."""
    used: Any
    """Text keys that image queries see."""
    text_len: Any
    ring: Any
    newest: Any
    """The last raster position stored; negative in the text."""


@triton.jit
def _list_of(first, last, used, text_len, ring, STRIDE: tl.constexpr):
    """The _List of the queries at sequence positions `first` .. `last`."""
    text_keys = tl.where(first < text_len, tl.minimum(last + 1, text_len), used)
    newest = tl.maximum(last - text_len, 0)
    local_keys = (tl.minimum(newest, ring - 1) - newest % STRIDE) // STRIDE + 1
    local_keys = tl.where(last < text_len, 0, local_keys)
    return _List(text_keys, text_keys + local_keys, used, text_len, ring, last - text_len)


@triton.jit
def _where(keys, entry, STRIDE: tl.constexpr):
    """Slot in the cache of each entry (N,) of a _List, and the raster position of the local ones."""
    newest = tl.maximum(keys.newest, 0)
    turn = newest % keys.ring  # the newest one's slot; what lies behind it was stored a turn earlier
    slot = newest % STRIDE + (entry - keys.text_keys) * STRIDE
    raster = tl.where(slot <= turn, slot, slot - keys.ring) + (newest - turn)
    return tl.where(entry < keys.text_keys, entry, keys.text_len + slot), raster


@triton.jit
def _seen(q_pos, entry, k_raster, keys, RULE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """(M, N): which queries, by sequence position, see which entries of a _List."""
    of_text = entry < keys.text_keys
    of_image = (entry >= keys.text_keys) & (entry < keys.entries) & (k_raster >= 0)
    from_text = (q_pos < keys.text_len)[:, None]
    seen_text = (entry[None, :] <= q_pos[:, None]) & ((entry < keys.used)[None, :] | from_text)
    # Rules are asked about positions inside the image only.
    q_raster, k_raster = tl.maximum(q_pos - keys.text_len, 0), tl.maximum(k_raster, 0)
    seen_image = RULE(q_raster[:, None], k_raster[None, :], WIDTH, HALF) & (q_pos >= keys.text_len)[:, None]
    return (of_text[None, :] & seen_text) | (of_image[None, :] & seen_image)


@triton.jit
def _scores(q, k, BLOCK: tl.constexpr):
    """(M, D) and (N, D) -> (M, N) in float32."""
    return dot(q, tl.trans(k), None, BLOCK) if BLOCK.M > 1 else tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[None, :]


@triton.jit
def _weighted(weights, v, BLOCK: tl.constexpr):
    """(M, N) and (N, D) -> (M, D) in float32."""
    return dot(weights.to(v.dtype), v, None, BLOCK) if BLOCK.M > 1 else tl.sum(tl.trans(weights) * v, 0)[None, :]


@triton.jit
def step_kernel(
    q,
    k,
    v,
    o,
    lse,
    position,
    prefix_lengths,
    n_head,
    new,
    text_len,
    ring,
    scale_log2,
    RULE: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (head, slice). q, k and v are Heads, k and v of caches.

    o is (slices, B * H, N, D), lse (slices, B * H, N), or None where there is one slice.
    """
    M: tl.constexpr = BLOCK.M  # Triton 3.6 makes no shapes out of a tuple's fields
    D: tl.constexpr = BLOCK.D
    program, part = tl.program_id(0), tl.program_id(1)
    batch, head = program // n_head, program % n_head
    first = tl.load(position).to(tl.int32)
    seen_list = _list_of(
        first, first + new - 1, used_text_keys(prefix_lengths, batch, text_len), text_len, ring, STRIDE
    )  # fmt: skip
    slice_len = tl.cdiv(tl.cdiv(seen_list.entries, BLOCK.N), tl.num_programs(1)) * BLOCK.N
    slice_end = tl.minimum((part + 1) * slice_len, seen_list.entries)

    offs_m, offs_n = tl.arange(0, M), tl.arange(0, BLOCK.N)
    is_query = offs_m < new
    queries, cache = load(rows_of(q, batch, head, 0), offs_m, is_query, BLOCK), keys_of(k, v, batch, head, 0)
    acc = tl.zeros([M, D], dtype=tl.float32)
    l_i = tl.zeros([M], dtype=tl.float32)
    # The least finite number, as -inf would make -inf - -inf of rows that have seen nothing so far.
    m_i = tl.full([M], LEAST_FLOAT32, dtype=tl.float32)
    for start in tl.range(part * slice_len, slice_end, BLOCK.N):
        entry = start + offs_n
        slot, k_raster = _where(seen_list, entry, STRIDE)
        seen = _seen(first + offs_m, entry, k_raster, seen_list, RULE, WIDTH, HALF) & is_query[:, None]
        fetched = tl.max(seen.to(tl.int32), 0) > 0
        block_k, block_v = load(cache.k, slot, fetched, BLOCK), load(cache.v, slot, fetched, BLOCK)
        scores = tl.where(seen, _scores(queries, block_k, BLOCK) * scale_log2, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(scores, 1))
        weights, alpha = tl.exp2(scores - m_new[:, None]), tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(weights, 1)
        acc = acc * alpha[:, None] + _weighted(weights, block_v, BLOCK)
        m_i = m_new

    # The sum is at least 1 where a key was seen; where none was, o becomes 0 and lse the least number: of no weight.
    l_i = tl.maximum(l_i, 1.0)
    row = (part.to(tl.int64) * tl.num_programs(0) + program) * new
    store(Rows(o + row * BLOCK.HEAD_DIM, BLOCK.HEAD_DIM, 1), acc / l_i[:, None], offs_m, is_query, BLOCK)
    if lse is not None:
        tl.store(lse + row + offs_m, m_i + tl.log2(l_i), mask=is_query)


@triton.jit
def merge_kernel(parts, lse, o, splits, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Program r: row r of o (rows, D) out of `parts` (splits, rows, D) and lse (splits, rows), both float32."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    offs_s, offs_d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    sources = offs_s.to(tl.int64) * rows + row
    part_lse = tl.load(lse + sources, mask=offs_s < splits, other=float("-inf"))
    weights = tl.exp2(part_lse - tl.max(part_lse, 0))
    mask = (offs_s < splits)[:, None] & (offs_d < HEAD_DIM)[None, :]
    outputs = tl.load(parts + sources[:, None] * HEAD_DIM + offs_d[None, :], mask=mask, other=0.0)
    merged = tl.sum(weights[:, None] * outputs, 0) / tl.sum(weights, 0)
    tl.store(o + row.to(tl.int64) * HEAD_DIM + offs_d, merged.to(o.dtype.element_ty), mask=offs_d < HEAD_DIM)
