"""Triton kernels of one decoding step; what they do is told in decode.py.

Legend: B batch, H heads, N new queries, D head dim; M queries and N keys of a block. acc, l_i, m_i: output,
sum and maximum of the softmax so far, in base 2.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.blocks import LEAST_FLOAT32, Rows, dot, keys_of, load, rows_of, store, used_text_keys


class _List(NamedTuple):
    """The list of keys that the queries may see, in blocks of one kind: first the text's, then local ones."""

    text_keys: Any
    local_keys: Any
    text_blocks: Any
    blocks: Any
    """Of both kinds."""
    ring: Any
    last: Any
    """The last raster position stored."""


@triton.jit
def _list_of(last, text_keys, ring, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The _List of queries up to raster position `last`."""
    local_keys = (tl.minimum(last, ring - 1) - last % STRIDE) // STRIDE + 1
    text_blocks = tl.cdiv(text_keys, BLOCK.N)
    return _List(text_keys, local_keys, text_blocks, text_blocks + tl.cdiv(local_keys, BLOCK.N), ring, last)


@triton.jit
def _entries(keys, block, is_text, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The entries (N,) of a block of a _List: their slots, which of them are keys, and local ones' raster positions."""
    entry = (block - tl.where(is_text, 0, keys.text_blocks)) * BLOCK.N + tl.arange(0, BLOCK.N)
    newest = keys.last % keys.ring  # the last one's slot; what lies behind it was stored a turn earlier
    slot = keys.last % STRIDE + entry * STRIDE
    raster = tl.where(slot <= newest, slot, slot - keys.ring) + (keys.last - newest)
    return tl.where(is_text, entry, slot), entry < tl.where(is_text, keys.text_keys, keys.local_keys), raster


@triton.jit
def _either(is_text, text, image):
    """The Rows of the text or those of the ring."""
    return Rows(
        tl.where(is_text, text.pointer, image.pointer),
        tl.where(is_text, text.stride_t, image.stride_t),
        tl.where(is_text, text.stride_d, image.stride_d),
    )


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
    text,
    image,
    o,
    lse,
    index,
    prefix_lengths,
    n_head,
    samples,
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
    """Program (head, slice). q is Heads, text and image are KeysValues of them; `samples` in a row share a text.

    o is (slices, B * H, N, D), lse (slices, B * H, N), or None where there is one slice.
    """
    M: tl.constexpr = BLOCK.M  # Triton 3.6 makes no shapes out of a tuple's fields
    D: tl.constexpr = BLOCK.D
    program, part = tl.program_id(0), tl.program_id(1)
    batch, head = program // n_head, program % n_head
    first = tl.load(index).to(tl.int32)
    used = used_text_keys(prefix_lengths, batch, text_len)
    keys = _list_of(first + new - 1, used, ring, STRIDE, BLOCK)
    share = tl.cdiv(keys.blocks, tl.num_programs(1))

    offs_m = tl.arange(0, M)
    is_query = offs_m < new
    queries = load(rows_of(q, batch, head, 0), offs_m, is_query, BLOCK)
    texts = keys_of(text.k, text.v, batch // samples, head, 0)
    images = keys_of(image.k, image.v, batch, head, 0)
    acc = tl.zeros([M, D], dtype=tl.float32)
    l_i = tl.zeros([M], dtype=tl.float32)
    # The least finite number, as -inf would make -inf - -inf of rows that have seen nothing so far.
    m_i = tl.full([M], LEAST_FLOAT32, dtype=tl.float32)
    for block in tl.range(part * share, tl.minimum((part + 1) * share, keys.blocks)):
        is_text = block < keys.text_blocks
        slot, is_key, k_raster = _entries(keys, block, is_text, STRIDE, BLOCK)
        # What the rule says of positions outside the image does not count: they are no keys or no queries.
        allowed = is_text | RULE((first + offs_m)[:, None], k_raster[None, :], WIDTH, HALF)
        seen = allowed & is_key[None, :] & is_query[:, None]
        fetched = tl.max(seen.to(tl.int32), 0) > 0
        block_k = load(_either(is_text, texts.k, images.k), slot, fetched, BLOCK)
        block_v = load(_either(is_text, texts.v, images.v), slot, fetched, BLOCK)
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
