"""Triton kernels of one decoding step: a few queries against a cache, of which only what they see is read.

A step has little to compute and much to read, so what counts is how many bytes are fetched and by how many programs at
once. Each program takes one head and one slice of the list of keys that these queries may see; where a slice is not the
whole, the partial outputs are weighted by their log-sum-exp in a second kernel (flash-decoding,
https://pytorch.org/blog/flash-decoding/; the merge as in https://arxiv.org/abs/2205.14135, section 3.1). The list is
never written down; its entries are computed from their number:

    text     the text keys in use
    local    the filled slots of the ring, or a single query's column, taken by strides

The pattern's rule is asked about every entry before it is fetched, so that a conv layer reads its window out of the
ring, and what is not seen may hold anything. Into how many slices a list is cut depends on the pattern and the cache's
length alone: a step that was captured once is replayed at every position, and its results do not depend on the batch.

One query is multiplied and summed up in float32; a few are padded to 16 rows for the matrix units. There are no
gradients. It is an operator of torch.library, `imagewords::attention_step`.

Legend: B batch, H heads, S slots, N new queries, D head dim; M queries and N keys of a block. acc, l_i, m_i: output,
sum and maximum of the softmax so far, in base 2.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks import LEAST_FLOAT32, Block, Rows, dot, head_block, head_rows, load, store, used_text_keys
from kernels.jit import AotSpec, Call, aot_spec, check_device, device_function
from kernels.launch import Launch, tuned_launch
from kernels.limits import MAX_NEW, check_limits, needs_gradients, refuse_forward_mode
from kernels.patterns import RULES, Pattern

# A list is cut into slices that are not so short that merging them costs more.
SLICE_KEYS = 256
MAX_SPLITS = 32


# --- which keys ------------------------------------------------------------------------------------------------------


@triton.jit
def _list_lengths(first, last, used, text_len, ring, STRIDE: tl.constexpr):
    """How many text keys and how many local keys the queries at `first` .. `last` may see."""
    text_keys = tl.where(first < text_len, tl.minimum(last + 1, text_len), used)
    newest = tl.maximum(last - text_len, 0)
    local_keys = (tl.minimum(newest, ring - 1) - newest % STRIDE) // STRIDE + 1
    return text_keys, tl.where(last < text_len, 0, local_keys)


@triton.jit
def _local_entry(i, newest, ring, STRIDE: tl.constexpr):
    """Slot in the ring and raster position of local entry i, `newest` being the last raster position stored."""
    newest = tl.maximum(newest, 0)
    turn = newest % ring  # the newest one's slot; what lies behind it was stored a turn earlier
    slot = newest % STRIDE + i * STRIDE
    return slot, tl.where(slot <= turn, slot, slot - ring) + (newest - turn)


@triton.jit
def _seen(
    q_pos,
    entry,
    k_raster,
    text_keys,
    entries,
    used,
    text_len,
    RULE: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
):
    """(M, N): which queries, by sequence position, see which entries of the list."""
    of_text = entry < text_keys
    of_image = (entry >= text_keys) & (entry < entries) & (k_raster >= 0)
    from_text = (q_pos < text_len)[:, None]
    seen_text = (entry[None, :] <= q_pos[:, None]) & ((entry < used)[None, :] | from_text)
    # Rules are asked about positions inside the image only.
    q_raster, k_raster = tl.maximum(q_pos - text_len, 0), tl.maximum(k_raster, 0)
    seen_image = RULE(q_raster[:, None], k_raster[None, :], WIDTH, HALF) & (q_pos >= text_len)[:, None]
    return (of_text[None, :] & seen_text) | (of_image[None, :] & seen_image)


# --- the step --------------------------------------------------------------------------------------------------------


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
    q_strides,
    k_strides,
    v_strides,
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
    """Program (head, slice). o is (slices, B * H, N, D), lse (slices, B * H, N), or None where there is one slice."""
    M: tl.constexpr = BLOCK.M  # Triton 3.6 makes no shapes out of a tuple's fields
    D: tl.constexpr = BLOCK.D
    program, part = tl.program_id(0), tl.program_id(1)
    batch, head = program // n_head, program % n_head
    first = tl.load(position).to(tl.int32)
    last = first + new - 1
    used = used_text_keys(prefix_lengths, batch, text_len)
    text_keys, local_keys = _list_lengths(first, last, used, text_len, ring, STRIDE)
    entries = text_keys + local_keys
    slice_len = tl.cdiv(tl.cdiv(entries, BLOCK.N), tl.num_programs(1)) * BLOCK.N

    offs_m, offs_n = tl.arange(0, M), tl.arange(0, BLOCK.N)
    is_query = offs_m < new
    queries = load(head_rows(q, q_strides, batch, head, 0), offs_m, is_query, BLOCK)
    keys, values = head_rows(k, k_strides, batch, head, 0), head_rows(v, v_strides, batch, head, 0)
    acc = tl.zeros([M, D], dtype=tl.float32)
    l_i = tl.zeros([M], dtype=tl.float32)
    # The least finite number, as -inf would make -inf - -inf of rows that have seen nothing so far.
    m_i = tl.full([M], LEAST_FLOAT32, dtype=tl.float32)
    for start in tl.range(part * slice_len, tl.minimum((part + 1) * slice_len, entries), BLOCK.N):
        entry = start + offs_n
        slot, k_raster = _local_entry(entry - text_keys, last - text_len, ring, STRIDE)
        seen = _seen(first + offs_m, entry, k_raster, text_keys, entries, used, text_len, RULE, WIDTH, HALF)
        seen &= is_query[:, None]
        fetched = tl.max(seen.to(tl.int32), 0) > 0
        slot = tl.where(entry < text_keys, entry, text_len + slot)
        block_k, block_v = load(keys, slot, fetched, BLOCK), load(values, slot, fetched, BLOCK)
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


# --- launching -------------------------------------------------------------------------------------------------------

# (bits of the dtype, block of the head dim) -> launch parameters, of one query and of a few. Not measured on a device
# yet: chosen from what the compiler reports of registers.
ONE = {
    (16, 16): Launch(1, 256, 4, 1),
    (16, 32): Launch(1, 256, 8, 1),
    (16, 64): Launch(1, 128, 8, 1),
    (16, 128): Launch(1, 128, 8, 1),
    (16, 256): Launch(1, 32, 8, 1),
    (32, 16): Launch(1, 256, 4, 1),
    (32, 32): Launch(1, 256, 8, 1),
    (32, 64): Launch(1, 128, 8, 1),
    (32, 128): Launch(1, 64, 8, 1),
    (32, 256): Launch(1, 32, 8, 1),
}
FEW = {
    (16, 16): Launch(16, 64, 4, 2),
    (16, 32): Launch(16, 64, 4, 2),
    (16, 64): Launch(16, 64, 4, 2),
    (16, 128): Launch(16, 64, 4, 2),
    (16, 256): Launch(16, 32, 4, 2),
    (32, 16): Launch(16, 64, 4, 2),
    (32, 32): Launch(16, 64, 4, 2),
    (32, 64): Launch(16, 64, 4, 2),
    (32, 128): Launch(16, 32, 4, 2),
    (32, 256): Launch(16, 16, 4, 2),
}
MERGE = {"num_warps": 4, "num_stages": 1}


def launch_parameters(q: Tensor, pattern: Pattern) -> Launch:
    """Tuned parameters of this device, or those of the tables."""
    kernel, table = ("decode_one", ONE) if q.shape[2] == 1 else ("decode_few", FEW)
    tuned = tuned_launch(q.device, kernel, q.dtype, q.shape[3], pattern.kind)
    return tuned or table[8 * q.element_size(), head_block(q.shape[3])]


def split_count(pattern: Pattern, new: int, slots: int) -> int:
    """Into how many slices a head's list of keys is cut: whatever the batch, so that a picture is the same in each."""
    keys = pattern.text_len + (pattern.height if _stride(pattern, new) > 1 else slots - pattern.text_len)
    return max(1, min(keys // SLICE_KEYS, MAX_SPLITS))


def _stride(pattern: Pattern, new: int) -> int:
    """Raster positions from one local key to the next: a single query of a column goes up that column."""
    return pattern.width if pattern.kind == "column" and new == 1 else 1


def step_call(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor | None, position: Tensor, prefix_lengths: Tensor | None,
    scale: float, pattern: Pattern, launch: Launch, splits: int,
) -> Call:  # fmt: skip
    """Writes o and lse, or without lse, where there is one slice, o alone."""
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "o": o,
        "lse": lse,
        "position": position,
        "prefix_lengths": prefix_lengths,
        "q_strides": q.stride(),
        "k_strides": k.stride(),
        "v_strides": v.stride(),
        "n_head": q.shape[1],
        "new": q.shape[2],
        "text_len": pattern.text_len,
        "ring": max(k.shape[2] - pattern.text_len, 1),
        "scale_log2": scale * math.log2(math.e),
        "RULE": device_function(pattern.rule.allows),
        "WIDTH": pattern.width,
        "HALF": pattern.half,
        "STRIDE": _stride(pattern, q.shape[2]),
        "BLOCK": Block(launch.block_m, launch.block_n, head_block(q.shape[3]), q.shape[3], "ieee"),
    }
    return Call(step_kernel, (q.shape[0] * q.shape[1], splits), arguments, launch.num_warps, launch.num_stages)


def merge_call(parts: Tensor, lse: Tensor, o: Tensor) -> Call:
    """Writes o (B, H, N, D) out of `parts` (splits, B, H, N, D)."""
    splits, head_dim = len(parts), o.shape[3]
    blocks = {"BLOCK_S": triton.next_power_of_2(splits), "BLOCK_D": head_block(head_dim), "HEAD_DIM": head_dim}
    arguments = {"parts": parts, "lse": lse, "o": o, "splits": splits} | blocks
    return Call(merge_kernel, (o.numel() // head_dim,), arguments, **MERGE)


def run_step(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, prefix_lengths: Tensor | None, scale: float, pattern: Pattern
) -> Tensor:
    o, launch = q.new_empty(q.shape), launch_parameters(q, pattern)
    prefix_lengths = None if prefix_lengths is None else prefix_lengths.contiguous()
    splits = split_count(pattern, q.shape[2], k.shape[2])
    if splits == 1:
        step_call(q, k, v, o, None, position, prefix_lengths, scale, pattern, launch, splits).run(q)
        return o
    parts = q.new_empty(splits, *q.shape, dtype=torch.float32)
    lse = q.new_empty(splits, *q.shape[:3], dtype=torch.float32)
    step_call(q, k, v, parts, lse, position, prefix_lengths, scale, pattern, launch, splits).run(q)
    merge_call(parts, lse, o).run(q)
    return o


def aot_specs() -> Iterator[AotSpec]:
    """The step of each table entry and dtype, under one rule or, at a head dim of 64, under all; and the merge."""
    for new, table in ((1, ONE), (4, FEW)):
        for (bits, head_dim), launch in table.items():
            for dtype in (torch.float32,) if bits == 32 else (torch.float16, torch.bfloat16):
                q = torch.empty(2, 16, new, head_dim, dtype=dtype, device="meta")
                for kind, wrap in RULES if head_dim == 64 else [("conv", "clamped")]:
                    yield _aot_step(Pattern(kind, 256, 32, 32, conv_wrap=wrap or "linear"), q, launch)
    for head_dim in (16, 32, 64, 128, 256):
        parts = torch.empty(MAX_SPLITS, 2, 16, 1, head_dim, device="meta")
        yield aot_spec(f"decode merge, D {head_dim}", merge_call(parts, parts, parts[0].bfloat16()))


def _aot_step(pattern: Pattern, q: Tensor, launch: Launch) -> AotSpec:
    k, integers = q.new_empty(2, 16, pattern.cache_len, q.shape[3]), q.new_empty(2, dtype=torch.int32)
    call = step_call(q, k, k, k.float(), k.float(), integers, integers, 0.125, pattern, launch, 2)
    label = f"decode {'one' if q.shape[2] == 1 else 'few'} {str(q.dtype).removeprefix('torch.')}, D {q.shape[3]}"
    return aot_spec(f"{label}, {pattern.kind}{f' {pattern.conv_wrap}' if pattern.kind == 'conv' else ''}", call)


# --- the operator ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("imagewords::attention_step", mutates_args=())
def _attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    prefix_lengths: Tensor | None,
    scale: float,
    kind: str,
    text_len: int,
    height: int,
    width: int,
    conv_kernel: int,
    conv_wrap: str,
) -> Tensor:
    check_device(q)
    pattern = Pattern(kind, text_len, height, width, conv_kernel, conv_wrap)
    return run_step(q, k, v, position, prefix_lengths, scale, pattern)


@_attention_step.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    position: int | Tensor,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
) -> Tensor:
    """`attention_step` by these kernels, of inputs that it has checked.

    Raises:
        ValueError: a dtype, head dim, number of queries or device that they do not take, or gradients are needed.
    """
    check_limits(q)
    refuse_forward_mode(q, k, v)
    if q.shape[2] > MAX_NEW:
        raise ValueError(f"a step by impl='triton' takes at most {MAX_NEW} queries, not {q.shape[2]}")
    if needs_gradients(q, k, v):
        raise ValueError("a step by impl='triton' has no gradients: use torch.no_grad() or impl='structured'")
    if isinstance(position, int):
        position = torch.full((), position, dtype=torch.int32, device=q.device)
    scale, p = 1 / math.sqrt(q.shape[3]) if scale is None else scale, pattern
    return _attention_step(
        q, k, v, position, prefix_lengths, scale, p.kind, p.text_len, p.height, p.width, p.conv_kernel, p.conv_wrap
    )
