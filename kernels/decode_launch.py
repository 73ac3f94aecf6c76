"""Launches of the decoding step: parameters by table, arguments, and the whole step.

Legend: B batch, H heads, S slots, N new queries, D head dim.
"""

import math
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels.blocks import Block, Heads, head_block
from kernels.cache_layout import KeysValues
from kernels.decode_kernels import merge_kernel, step_kernel
from kernels.jit import AotSpec, Call, aot_spec, device_function
from kernels.launch import Launch, tuned_launch
from kernels.patterns import RULES, Pattern

# A list is cut into slices that are not so short that merging them costs more.
SLICE_KEYS = 256
MAX_SPLITS = 32

# (bits of the dtype, block of the head dim) -> launch parameters, of one query and of a few. Not measured on a device
# yet: chosen from what the compiler reports of registers.
ONE = {
    (16, 16): Launch(1, 256, 4, 1),
    (16, 32): Launch(1, 256, 8, 1),
    (16, 64): Launch(1, 128, 4, 1),
    (16, 128): Launch(1, 128, 8, 1),
    (16, 256): Launch(1, 32, 4, 1),
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
    (32, 128): Launch(16, 32, 8, 2),
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
    keys = pattern.text_len + (pattern.height if _stride(pattern, new) > 1 else slots)
    return max(1, min(keys // SLICE_KEYS, MAX_SPLITS))


def _stride(pattern: Pattern, new: int) -> int:
    """Raster positions from one local key to the next: a single query of a column goes up that column."""
    return pattern.width if pattern.kind == "column" and new == 1 else 1


def step_call(
    q: Tensor, text: KeysValues, image: KeysValues, o: Tensor, lse: Tensor | None, index: Tensor,
    prefix_lengths: Tensor | None, scale: float, pattern: Pattern, launch: Launch, splits: int,
) -> Call:  # fmt: skip
    """Writes o and lse, or without lse, where there is one slice, o alone."""
    arguments = {
        "q": Heads.of(q),
        "text": KeysValues(*map(Heads.of, text)),
        "image": KeysValues(*map(Heads.of, image)),
        "o": o,
        "lse": lse,
        "index": index,
        "prefix_lengths": prefix_lengths,
        "n_head": q.shape[1],
        "samples": len(q) // len(text.k),
        "new": q.shape[2],
        "text_len": pattern.text_len,
        "ring": image.k.shape[2],
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
    q: Tensor,
    text: KeysValues,
    image: KeysValues,
    index: Tensor,
    prefix_lengths: Tensor | None,
    scale: float,
    pattern: Pattern,
) -> Tensor:
    o, launch = q.new_empty(q.shape), launch_parameters(q, pattern)
    prefix_lengths = None if prefix_lengths is None else prefix_lengths.contiguous()
    splits = split_count(pattern, q.shape[2], image.k.shape[2])
    if splits == 1:
        step_call(q, text, image, o, None, index, prefix_lengths, scale, pattern, launch, splits).run(q)
        return o
    parts = q.new_empty(splits, *q.shape, dtype=torch.float32)
    lse = q.new_empty(splits, *q.shape[:3], dtype=torch.float32)
    step_call(q, text, image, parts, lse, index, prefix_lengths, scale, pattern, launch, splits).run(q)
    merge_call(parts, lse, o).run(q)
    return o


def aot_specs() -> Iterator[AotSpec]:
    """The step of each table entry and dtype, under one rule or, at a head dim of 64, under all; and the merge."""
    conv = Pattern("conv", 256, 32, 32, conv_wrap="clamped")
    rules = [Pattern(kind, 256, 32, 32, conv_wrap=wrap or "linear") for kind, wrap in RULES]
    for new, table in ((1, ONE), (4, FEW)):
        for (bits, head_dim), launch in table.items():
            for dtype in (torch.float32,) if bits == 32 else (torch.float16, torch.bfloat16):
                q = torch.empty(2, 16, new, head_dim, dtype=dtype, device="meta")
                for pattern in rules if head_dim == 64 else [conv]:
                    yield _aot_step(pattern, q, launch, splits=2)
                yield _aot_step(conv, q, launch, splits=1)
    for head_dim in (16, 32, 64, 128, 256):
        parts = torch.empty(MAX_SPLITS, 2, 16, 1, head_dim, device="meta")
        yield aot_spec(f"decode merge, D {head_dim}", merge_call(parts, parts, parts[0].bfloat16()))


def _aot_step(pattern: Pattern, q: Tensor, launch: Launch, splits: int) -> AotSpec:
    """Two samples of one text: in slices and with prefix lengths, or in one slice and without them."""
    text, image = (KeysValues(x, x) for x in (q.new_empty(1, 16, 256, q.shape[3]), q.new_empty(2, 16, 176, q.shape[3])))
    integers, partial = q.new_empty(2, dtype=torch.int32), q.new_empty(q.shape, dtype=torch.float32)
    o, lse, prefix_lengths = (q, None, None) if splits == 1 else (partial, partial, integers)
    call = step_call(q, text, image, o, lse, integers, prefix_lengths, 0.125, pattern, launch, splits)
    label = f"decode {'one' if q.shape[2] == 1 else 'few'} {str(q.dtype).removeprefix('torch.')}, D {q.shape[3]}"
    label += f", {pattern.kind}{f' {pattern.conv_wrap}' if pattern.kind == 'conv' else ''}"
    return aot_spec(f"{label}{', one slice' if splits == 1 else ''}", call)
