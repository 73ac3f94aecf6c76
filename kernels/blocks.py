"""Device functions that the attention kernels share: rows in and out of memory, and the walk over a tile's keys.

Legend: B batch, H heads, T sequence, D head dim, M queries and N keys of a block; positions count from the start of the
text or of the image.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import INTERPRETED
from kernels.tiles import span, span_positions


class Block(NamedTuple):
    """Sizes of what the kernels hold at a time; a compile-time argument of theirs."""

    M: int
    N: int
    D: int
    """The head dim rounded up to a power of two."""
    HEAD_DIM: int
    PRECISION: str
    """How tl.dot multiplies float32: "tf32x3" or "tf32"."""


def head_block(head_dim: int) -> int:
    """The power of two that the kernels hold of a head dim, at least the matrix units' smallest."""
    return max(16, triton.next_power_of_2(head_dim))


class Heads(NamedTuple):
    """A tensor (B, H, T, D) with its strides, as the kernels take it."""

    pointer: Any
    strides: tuple[Any, ...]

    @classmethod
    def of(cls, x: Tensor) -> "Heads":
        return cls(x, x.stride())


class Rows(NamedTuple):
    """One head of q, k, v or the like, from the first text or the first image position on (device side)."""

    pointer: Any
    stride_t: Any
    stride_d: Any


class Keys(NamedTuple):
    """The keys and values of one head's text or image (device side)."""

    k: Rows
    v: Rows


LEAST_FLOAT32 = tl.constexpr(-3.4028234e38)
IN_INTERPRETER = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc, BLOCK: tl.constexpr):
    """acc + a b in float32, acc float32 or None."""
    if IN_INTERPRETER:  # which would multiply the bits of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=BLOCK.PRECISION)


@triton.jit
def load(rows, positions, valid, BLOCK: tl.constexpr):
    """(N, D) at `positions` (N,); zeros where they are not `valid` (None: all are) and beyond the head dim."""
    offs_d = tl.arange(0, BLOCK.D).to(tl.int64)
    pointers = rows.pointer + positions.to(tl.int64)[:, None] * rows.stride_t + offs_d[None, :] * rows.stride_d
    if valid is None:
        if BLOCK.HEAD_DIM == BLOCK.D:
            loaded = tl.load(pointers)
        else:
            loaded = tl.load(pointers, mask=(offs_d < BLOCK.HEAD_DIM)[None, :], other=0.0)
    elif BLOCK.HEAD_DIM == BLOCK.D:
        loaded = tl.load(pointers, mask=valid[:, None], other=0.0)
    else:
        loaded = tl.load(pointers, mask=valid[:, None] & (offs_d < BLOCK.HEAD_DIM)[None, :], other=0.0)
    return loaded


@triton.jit
def store(rows, values, positions, valid, BLOCK: tl.constexpr):
    offs_d = tl.arange(0, BLOCK.D).to(tl.int64)
    pointers = rows.pointer + positions.to(tl.int64)[:, None] * rows.stride_t + offs_d[None, :] * rows.stride_d
    mask = valid[:, None] & (offs_d < BLOCK.HEAD_DIM)[None, :]
    tl.store(pointers, values.to(rows.pointer.dtype.element_ty), mask=mask)


@triton.jit
def rows_of(heads, batch, head, start):
    """The Rows of one head from sequence position `start` on. Offsets take 64 bits."""
    strides = heads.strides
    offset = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1] + tl.cast(start, tl.int64) * strides[2]
    return Rows(heads.pointer + offset, strides[2], strides[3])


@triton.jit
def keys_of(k, v, batch, head, start):
    """The Keys of one head from sequence position `start` on."""
    return Keys(rows_of(k, batch, head, start), rows_of(v, batch, head, start))


@triton.jit
def used_text_keys(prefix_lengths, batch, text_len):
    """How many text keys the image queries of a sample see. Lengths out of range are cut to it."""
    used = text_len
    if prefix_lengths is not None:
        used = tl.minimum(tl.maximum(tl.load(prefix_lengths + batch).to(tl.int32), 0), text_len)
    return used


@triton.jit
def walk_keys(
    STEP: tl.constexpr,
    state,
    inputs,
    keys,
    text,
    used_text,
    MASK_TEXT: tl.constexpr,
    tile,
    q_pos,
    length,
    RULE: tl.constexpr,
    TILING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes all blocks of keys that a tile of queries sees into `state` by STEP(state, inputs, k, v, mask, BLOCK).

    `keys` are the Keys of the tile's own kind; of `text` it sees the first `used_text`.
    """
    offs_n = tl.arange(0, BLOCK.N)
    for start in tl.range(0, used_text, BLOCK.N):
        k_pos = start + offs_n
        if MASK_TEXT:
            in_use = k_pos < used_text
            k = load(text.k, k_pos, in_use, BLOCK)
            v = load(text.v, k_pos, in_use, BLOCK)
            state = STEP(state, inputs, k, v, in_use[None, :], BLOCK)
        else:
            k = load(text.k, k_pos, None, BLOCK)
            v = load(text.v, k_pos, None, BLOCK)
            state = STEP(state, inputs, k, v, None, BLOCK)

    first, end = span(tile, length, TILING, BLOCK.M, False)
    if TILING.DENSE:
        first = first // BLOCK.N * BLOCK.N
        for start in tl.range(0, first, BLOCK.N):
            k = load(keys.k, start + offs_n, None, BLOCK)
            v = load(keys.v, start + offs_n, None, BLOCK)
            state = STEP(state, inputs, k, v, None, BLOCK)

    for start in tl.range(first, end, BLOCK.N):
        k_pos, valid = span_positions(start + offs_n, end, tile, length, TILING)
        k = load(keys.k, k_pos, valid, BLOCK)
        v = load(keys.v, k_pos, valid, BLOCK)
        mask = RULE(q_pos[:, None], k_pos[None, :], TILING.WIDTH, TILING.HALF) & valid[None, :]
        state = STEP(state, inputs, k, v, mask, BLOCK)
    return state
