"""The largest x·w_k + b_k of each row of x on a GPU: a matrix product whose tiles are reduced as they come.

A program takes BLOCK_M rows through the codes, BLOCK_N at a time, and keeps for each row the largest score so far and
its index. Where rows are few, the codes are split over programs, and a second kernel takes the best of the splits. No
atomics: the result is the same every time.

Float32 products are exact enough to order float32 scores, and still run in the matrix units, as three products of the
19-bit numbers that those know (tf32): with x = x_hi + x_lo and w alike, x·w = x_lo·w_hi + x_hi·w_lo + x_hi·w_hi, off by
at most 3 * 2^-22 of each product, where rounding to float32 takes up to 2^-24 at each of D sums. (tl.dot has this as
"tf32x3", but adds up from zero and replaces NaN each time, which for short vectors costs as much as the products;
"ieee" has no matrix units: a quarter of three products' peak on an H100.) 16-bit numbers are multiplied as they are.

Legend: N rows, in `inner` rows of one stride each; K codes; D values in each; S splits of the codes.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import INTERPRETED, AotSpec, Call, aot_spec, check_device
from kernels.launch import Launch, tuned_launch

# (bits of a dtype that holds the values of both, most values of a vector) -> launch parameters. Not measured on a
# device yet: chosen from what the compiler reports (`python -m kernels.resources`). Short vectors, whose reduction
# takes as long as their products, get tiles of which two blocks fit on a multiprocessor of sm_90, so that one
# multiplies while the other reduces; long ones the tiles with the most products a value loaded. Of these alone sm_100
# spills, at most 144 bytes.
LAUNCHES = {
    (32, 16): Launch(128, 64, 8, 3),
    (32, 32): Launch(128, 64, 8, 3),
    (32, None): Launch(128, 128, 8, 4),
    (16, 16): Launch(128, 64, 8, 3),
    (16, 32): Launch(128, 64, 8, 3),
    (16, 64): Launch(128, 64, 8, 3),
    (16, None): Launch(128, 128, 8, 3),
}
# Values of longer vectors that are multiplied at once.
CHUNKS = {32: 16, 16: 64}
PROGRAMS_A_PROCESSOR = 2  # wanted of the grid before codes are no more split
LEAST_BLOCKS_A_SPLIT = 4
MERGED_ROWS = 128

WIDENED = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bits of bfloat16 as integers


@triton.jit
def tf32_round(v):
    """To the nearest number that has 10 bits behind the point, by integers, which the interpreter knows too.

    Toward zero where the nearest would be infinity. A NaN may come out as infinity, but what is then left of it
    (v - tf32_round(v)) is NaN as arithmetic makes it, and stays that.
    """
    bits = v.to(tl.int32, bitcast=True)
    # Not beyond: half a step more would make infinity of a finite number, and -0 of the NaN of all ones, a GPU's own.
    half = tl.where((bits & 0x7FFFFFFF) < 0x7F7FF000, 0x1000, 0)
    return ((bits + half) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def add_product(acc, x, w):
    """acc + x·w of tiles (M, D) and (D, N); float32 as three products, the smallest first."""
    if x.dtype == w.dtype and x.dtype != tl.float32:
        if WIDENED:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc)
    else:
        w = w.to(tl.float32)
        w_hi = tf32_round(w)
        w_lo = tf32_round(w - w_hi)
        if x.dtype == tl.float32:
            x_hi = tf32_round(x)
            x_lo = tf32_round(x - x_hi)
            acc = tl.dot(x_lo, w_hi, acc, input_precision="tf32")
        else:  # 16 bits fit
            x_hi = x.to(tl.float32)
        acc = tl.dot(x_hi, w_lo, acc, input_precision="tf32")
        acc = tl.dot(x_hi, w_hi, acc, input_precision="tf32")
    return acc


@triton.jit
def argmax_kernel(
    x,
    weight,
    bias,
    tops,  # (S, N) float32, the largest score in each split
    indices,  # (S, N) int64
    stride_xb,
    stride_xm,
    stride_xd,
    stride_wk,
    stride_wd,
    stride_bk,
    n_rows,
    inner,
    n_codes,
    dim,
    split_size,  # a multiple of BLOCK_N
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # dim <= BLOCK_D
    HAS_BIAS: tl.constexpr,
):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D).to(tl.int64)
    in_rows = offs_m < n_rows
    x_rows = x + ((offs_m // inner) * stride_xb + (offs_m % inner) * stride_xm)[:, None]
    if ONE_CHUNK:
        in_dim = offs_d < dim
        x_tile = tl.load(x_rows + offs_d[None, :] * stride_xd, mask=in_rows[:, None] & in_dim[None, :], other=0.0)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    best_index = tl.zeros([BLOCK_M], tl.int32)
    first = tl.program_id(1) * split_size
    for start in range(first, tl.minimum(first + split_size, n_codes), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        in_codes = offs_n < n_codes
        w_columns = weight + offs_n.to(tl.int64)[None, :] * stride_wk
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if ONE_CHUNK:
            mask = in_codes[None, :] & in_dim[:, None]
            acc = add_product(acc, x_tile, tl.load(w_columns + offs_d[:, None] * stride_wd, mask=mask, other=0.0))
        else:
            for start_d in range(0, dim, BLOCK_D):
                chunk = start_d + offs_d
                in_dim = chunk < dim
                x_tile = tl.load(
                    x_rows + chunk[None, :] * stride_xd, mask=in_rows[:, None] & in_dim[None, :], other=0.0
                )
                mask = in_codes[None, :] & in_dim[:, None]
                acc = add_product(acc, x_tile, tl.load(w_columns + chunk[:, None] * stride_wd, mask=mask, other=0.0))
        offset = tl.where(in_codes, 0.0, float("-inf"))
        if HAS_BIAS:
            offset += tl.load(bias + offs_n.to(tl.int64) * stride_bk, mask=in_codes, other=0.0).to(tl.float32)
        acc += offset[None, :]
        acc = tl.where(acc == acc, acc, float("inf"))  # NaN counts as infinity
        top = tl.max(acc, axis=1)
        index = tl.min(tl.where(acc == top[:, None], offs_n[None, :], n_codes - 1), axis=1)
        # Never the other way round: of equal scores the one that came first stays.
        best_index = tl.where(top > best, index, best_index)
        best = tl.maximum(best, top)
    out = tl.program_id(1).to(tl.int64) * n_rows + offs_m
    tl.store(tops + out, best, mask=in_rows)
    tl.store(indices + out, best_index.to(tl.int64), mask=in_rows)


@triton.jit
def merge_splits_kernel(tops, indices, merged, n_rows, n_splits, BLOCK: tl.constexpr):
    """tops, indices (S, N) -> merged (N,): of equal tops the one of the first split, which has the lowest codes."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < n_rows
    offs = rows
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_index = tl.zeros([BLOCK], tl.int64)
    for _ in range(n_splits):
        top = tl.load(tops + offs, mask=mask, other=float("-inf"))
        best_index = tl.where(top > best, tl.load(indices + offs, mask=mask, other=0), best_index)
        best = tl.maximum(best, top)
        offs += n_rows
    tl.store(merged + rows, best_index, mask=mask)


def argmax_triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., D), weight (K, D), bias (K,) or None, of at most 32 bits and any strides -> (...) int64.

    No copy is made of x where its leading dimensions are those of a feature map, as a view of (B, h, w, D) from
    (B, D, h, w). Raises ValueError where there is no device for it.
    """
    check_device(x)
    slabs = _as_slabs(x)
    n_rows, n_codes = slabs.shape[0] * slabs.shape[1], len(weight)
    launch, block_d = launch_parameters(x, weight)
    split_size, n_splits = _splits(x.device, triton.cdiv(n_rows, launch.block_m), n_codes, launch.block_n)
    tops = torch.empty(n_splits, n_rows, dtype=torch.float32, device=x.device)
    indices = torch.empty(n_splits, n_rows, dtype=torch.int64, device=x.device)
    _argmax_call(slabs, weight, bias, tops, indices, split_size, launch, block_d).run(x)
    if n_splits > 1:
        merged = torch.empty(n_rows, dtype=torch.int64, device=x.device)
        _merge_call(tops, indices, merged).run(x)
        return merged.view(x.shape[:-1])
    return indices.view(x.shape[:-1])


def _argmax_call(
    slabs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tops: Tensor,
    indices: Tensor,
    split_size: int,
    launch: Launch,
    block_d: int,
) -> Call:
    n_splits, n_rows = tops.shape
    dim = weight.shape[1]
    tensors = {"x": slabs, "weight": weight, "bias": bias, "tops": tops, "indices": indices}
    x_strides = dict(zip(("stride_xb", "stride_xm", "stride_xd"), slabs.stride(), strict=True))
    w_strides = dict(zip(("stride_wk", "stride_wd"), weight.stride(), strict=True))
    arguments = {
        **tensors,
        **x_strides,
        **w_strides,
        "stride_bk": 0 if bias is None else bias.stride(0),
        "n_rows": n_rows,
        "inner": slabs.shape[1],
        "n_codes": len(weight),
        "dim": dim,
        "split_size": split_size,
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "BLOCK_D": block_d,
        "ONE_CHUNK": dim <= block_d,
        "HAS_BIAS": bias is not None,
    }
    grid = (triton.cdiv(n_rows, launch.block_m), n_splits)
    return Call(argmax_kernel, grid, arguments, *launch[2:])


def _merge_call(tops: Tensor, indices: Tensor, merged: Tensor) -> Call:
    n_splits, n_rows = tops.shape
    arguments = {"tops": tops, "indices": indices, "merged": merged, "n_rows": n_rows, "n_splits": n_splits}
    return Call(merge_splits_kernel, (triton.cdiv(n_rows, MERGED_ROWS),), arguments | {"BLOCK": MERGED_ROWS}, 4, 3)


def _as_slabs(x: Tensor) -> Tensor:
    """(..., D) -> (B, M, D), a view where strides allow it: all but the first of the leading dimensions in one."""
    if x.ndim <= 2:
        return x.reshape(1, -1, x.shape[-1])
    try:
        return x.view(-1, x.shape[-1])[None]
    except RuntimeError:
        return x.flatten(1, -2)


def launch_parameters(x: Tensor, weight: Tensor) -> tuple[Launch, int]:
    """Launch parameters, and how many values of the vectors are taken at once."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    bits = 8 * dtype.itemsize
    whole = next((most for of, most in LAUNCHES if of == bits and most is not None and x.shape[-1] <= most), None)
    tuned = tuned_launch(x.device, "nearest", dtype, whole or CHUNKS[bits], "whole" if whole else "chunks")
    return tuned or LAUNCHES[bits, whole], whole or CHUNKS[bits]


def _splits(device: torch.device, grid_rows: int, n_codes: int, block_n: int) -> tuple[int, int]:
    """Codes in a split, a multiple of the block's, and how many splits there are."""
    blocks = triton.cdiv(n_codes, block_n)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    wanted = max(1, PROGRAMS_A_PROCESSOR * processors // grid_rows)
    size = max(LEAST_BLOCKS_A_SPLIT, triton.cdiv(blocks, wanted))
    return size * block_n, triton.cdiv(blocks, size)


def aot_specs() -> Iterator[AotSpec]:
    """Every kernel as the table launches it: on feature maps of 32 x 32, channels last and first, and 8192 codes."""
    bfloat16, float32 = torch.bfloat16, torch.float32
    dtypes = {16: ((bfloat16, bfloat16),), 32: ((float32, float32), (bfloat16, float32))}
    for (bits, whole), launch in LAUNCHES.items():
        dim = whole or 256
        for of_x, of_weight in dtypes[bits]:
            rows = torch.empty(1, 8 * 1024, dim, dtype=of_x, device="meta")
            maps = torch.empty(8, dim, 1024, dtype=of_x, device="meta").mT
            weight = torch.empty(8192, dim, dtype=of_weight, device="meta")
            bias, tops = (torch.empty(n, dtype=torch.float32, device="meta") for n in (8192, (2, 8192)))
            indices = torch.empty(2, 8192, dtype=torch.int64, device="meta")
            for layout, x in {"rows": rows, "maps": maps}.items():
                call = _argmax_call(x, weight, bias, tops, indices, 4096, launch, whole or CHUNKS[bits])
                names = " x ".join(str(dtype).removeprefix("torch.") for dtype in (of_x, of_weight))
                yield aot_spec(f"nearest, {names}, D {f'<= {whole}' if whole else 'in chunks'}, {layout}", call)
    yield aot_spec("nearest, merging splits", _merge_call(tops, indices, indices[0]))
