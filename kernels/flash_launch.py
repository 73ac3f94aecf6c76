"""Launches of the attention kernels: parameters by table, arguments, and the whole forward and backward pass.

Legend: B batch, H heads, T sequence, D head dim, L text_len.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.blocks import Block, Heads, head_block
from kernels.flash_backward import key_gradient_kernel, query_gradient_kernel
from kernels.flash_forward import forward_kernel
from kernels.jit import AotSpec, Call, aot_spec, device_function
from kernels.launch import Launch, tuned_launch
from kernels.patterns import RULES, Pattern, causal_rule
from kernels.tiles import CAUSAL, image_tiling

# Blocks of image queries that a split of a text tile's walk has at least: 16 are all of a 32x32 grid.
LEAST_BLOCKS_A_SPLIT = 16


# (bits of the dtype, block of the head dim) -> launch parameters. They are no measurements: of those that the compiler
# fits into registers and shared memory, the ones with the fewest passes over keys (README.md); kernels.tune measures.
FORWARD = {
    (16, 16): Launch(128, 64, 8, 3, 128),
    (16, 32): Launch(128, 64, 8, 3, 128),
    (16, 64): Launch(128, 64, 8, 3, 128),
    (16, 128): Launch(128, 64, 8, 2),
    (16, 256): Launch(64, 32, 8, 2),
    (32, 16): Launch(64, 32, 4, 2),
    (32, 32): Launch(64, 32, 4, 2),
    (32, 64): Launch(64, 32, 4, 2),
    (32, 128): Launch(64, 32, 8, 1),
    (32, 256): Launch(32, 16, 4, 1),
}
QUERY_GRADIENT = {
    (16, 16): Launch(64, 64, 4, 3),
    (16, 32): Launch(64, 64, 4, 3),
    (16, 64): Launch(64, 64, 4, 3),
    (16, 128): Launch(64, 64, 8, 2),
    (16, 256): Launch(32, 32, 4, 1),  # fits where a block has 99 KB, on 8.6, 8.9 and 12.0
    (32, 16): Launch(64, 32, 4, 2),
    (32, 32): Launch(64, 32, 4, 2),
    (32, 64): Launch(64, 32, 4, 2),
    (32, 128): Launch(32, 32, 4, 1),
    (32, 256): Launch(16, 16, 4, 1),
}
KEY_GRADIENT = {
    (16, 16): Launch(64, 64, 4, 3),
    (16, 32): Launch(64, 64, 4, 3),
    (16, 64): Launch(64, 64, 4, 2),
    (16, 128): Launch(64, 64, 8, 2),
    (16, 256): Launch(32, 32, 8, 1),
    (32, 16): Launch(32, 64, 4, 2),
    (32, 32): Launch(32, 64, 4, 2),
    (32, 64): Launch(32, 32, 4, 1),
    (32, 128): Launch(32, 32, 8, 1),
    (32, 256): Launch(16, 16, 4, 1),
}
TABLES = {"forward": FORWARD, "query_gradient": QUERY_GRADIENT, "key_gradient": KEY_GRADIENT}


class Layer(NamedTuple):
    """One layer's attention as the kernels see it."""

    pattern: Pattern
    text_len: int
    image_len: int
    scale: float
    prefix_lengths: Tensor | None

    @classmethod
    def of(cls, pattern: Pattern, scale: float, prefix_lengths: Tensor | None) -> "Layer":
        # A causal sequence without prefixes is all text: the mask is the same, and there is one kind of tile.
        all_text = pattern.kind == "causal" and prefix_lengths is None
        lengths = (pattern.seq_len, 0) if all_text else (pattern.text_len, pattern.image_len)
        return cls(pattern, *lengths, scale, None if prefix_lengths is None else prefix_lengths.contiguous())


def launch_parameters(kernel: str, q: Tensor, pattern: Pattern) -> Launch:
    """Tuned parameters of this device, or those of the table."""
    tuned = tuned_launch(q.device, kernel, q.dtype, q.shape[-1], pattern.kind)
    return tuned or TABLES[kernel][8 * q.element_size(), head_block(q.shape[-1])]


def _precision() -> str:
    # Three products of tf32 parts come to float32's accuracy, in the matrix units. Both of PyTorch's ways of allowing
    # less show here; asking torch.get_float32_matmul_precision is an error once the other one was used.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _common(layer: Layer, q: Tensor, launch: Launch, tile: int, other: int) -> dict[str, Any]:
    """Arguments that all kernels take; tiles are of `tile` positions against blocks of `other`."""
    return {
        "prefix_lengths": layer.prefix_lengths,
        "n_head": q.shape[1],
        "text_len": layer.text_len,
        "image_len": layer.image_len,
        "scale_log2": layer.scale * math.log2(math.e),
        "CAUSAL_RULE": device_function(causal_rule),
        "CAUSAL": CAUSAL,
        "RULE": device_function(layer.pattern.rule.allows),
        "IMAGE": image_tiling(layer.pattern, tile, other),
        "BLOCK": Block(launch.block_m, launch.block_n, head_block(q.shape[-1]), q.shape[-1], _precision()),
    }


def _query_call(kernel: Any, layer: Layer, q: Tensor, launch: Launch, arguments: dict[str, Any]) -> Call:
    """A kernel whose programs are tiles of queries."""
    common = _common(layer, q, launch, launch.block_m, launch.block_n)
    text_tiles = triton.cdiv(layer.text_len, launch.block_m)
    tiles = text_tiles + common["IMAGE"].count(layer.image_len, launch.block_m)
    masked = layer.prefix_lengths is not None or layer.text_len % launch.block_n != 0
    arguments |= common | {"text_tiles": text_tiles, "tiles": tiles, "MASK_TEXT": masked}
    return Call(kernel, (q.shape[0] * q.shape[1] * tiles,), arguments, *launch[2:])


def forward_call(layer: Layer, launch: Launch, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor) -> Call:
    """Writes o and lse."""
    return _query_call(forward_kernel, layer, q, launch, _heads(q=q, k=k, v=v, o=o) | {"lse": lse})


def query_gradient_call(
    layer: Layer,
    launch: Launch,
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dq: Tensor,
    delta: Tensor,
) -> Call:
    """Writes dq and delta, which the next call reads."""
    arguments = _heads(q=q, k=k, v=v, o=o, do=do, dq=dq) | {"lse": lse, "delta": delta, "scale": layer.scale}
    return _query_call(query_gradient_kernel, layer, q, launch, arguments)


def text_splits(layer: Layer, block_m: int) -> int:
    """Into how many parts the image queries are divided for each tile of text keys: by shapes only."""
    return max(1, triton.cdiv(layer.image_len, block_m) // LEAST_BLOCKS_A_SPLIT)


def key_gradient_call(
    layer: Layer, launch: Launch, do: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor,
    dk: Tensor, dv: Tensor, dk_text: Tensor, dv_text: Tensor,
) -> Call:  # fmt: skip
    """Writes the image's rows of dk and dv, and dk_text and dv_text (splits, B, H, L, D), to be summed over splits."""
    common = _common(layer, q, launch, launch.block_n, launch.block_m)
    splits, text_tiles = len(dk_text), triton.cdiv(layer.text_len, launch.block_n)
    tiles = text_tiles * splits + common["IMAGE"].count(layer.image_len, launch.block_n)
    blocks_a_split = triton.cdiv(triton.cdiv(layer.image_len, launch.block_m), splits)
    assert dk.stride() == dv.stride() and dk_text.stride() == dv_text.stride()  # strides take registers
    arguments = _heads(q=q, k=k, v=v, do=do, dk=dk, dk_text=dk_text[0]) | common | {
        "dv": dv,
        "dv_text": dv_text,
        "lse": lse,
        "delta": delta,
        "scale": layer.scale,
        "text_tiles": text_tiles,
        "splits": splits,
        "split_len": blocks_a_split * launch.block_m,
        "split_stride": dk_text.stride(0),
        "tiles": tiles,
    }  # fmt: skip
    return Call(key_gradient_kernel, (q.shape[0] * q.shape[1] * tiles,), arguments, *launch[2:])


def _heads(**tensors: Tensor) -> dict[str, Heads]:
    return {name: Heads.of(x) for name, x in tensors.items()}


def aot_specs() -> Iterator[AotSpec]:
    """Every entry of the tables under the costliest mask, those of bfloat16 and head dim 64 under all."""
    for bits, head_dim in FORWARD:
        dtype = torch.float32 if bits == 32 else torch.bfloat16
        masks = RULES if (bits, head_dim) == (16, 64) else [("conv", "modulo")]
        for kind, wrap in masks:
            pattern = Pattern(kind, 256, 64, 64, conv_wrap=wrap or "linear")
            name = f"{str(dtype).removeprefix('torch.')}, D {head_dim}, {kind}{f' {wrap}' if wrap else ''}"
            for kernel, call in _aot_calls(pattern, dtype, head_dim).items():
                yield aot_spec(f"{kernel}, {name}", call)


def _aot_calls(pattern: Pattern, dtype: torch.dtype, head_dim: int) -> dict[str, Call]:
    """The launches of one layer of B=2, H=16 whose q, k and v are views of one projection, with prefix lengths."""
    qkv = torch.empty(2, pattern.seq_len, 3, 16, head_dim, dtype=dtype, device="meta").permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    o, do, dq, dk, dv = (empty_rows(q) for _ in range(5))
    lse, delta = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    parts = q.new_empty(2, 2, 16, pattern.text_len, head_dim, dtype=torch.float32)
    layer = Layer.of(pattern, 0.125, torch.empty(2, dtype=torch.int32, device="meta"))
    forward, query, key = (launch_parameters(kernel, q, pattern) for kernel in TABLES)
    return {
        "forward": forward_call(layer, forward, q, k, v, o, lse),
        "dq": query_gradient_call(layer, query, do, q, k, v, o, lse, dq, delta),
        "dk dv": key_gradient_call(layer, key, do, q, k, v, lse, delta, dk, dv, parts, parts),
    }


def empty_rows(like: Tensor) -> Tensor:
    """(B, H, T, D), in memory (B, T, H, D): what follows merges the heads, which then is a view."""
    batch, heads, seq, head_dim = like.shape
    return like.new_empty(batch, seq, heads, head_dim).transpose(1, 2)


def run_forward(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    o, lse = empty_rows(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    forward_call(layer, launch_parameters("forward", q, layer.pattern), q, k, v, o, lse).run(q)
    return o, lse


def run_backward(
    layer: Layer, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv, delta = empty_rows(q), empty_rows(k), empty_rows(v), torch.empty_like(lse)
    launch = launch_parameters("key_gradient", q, layer.pattern)
    splits = text_splits(layer, launch.block_m)
    dk_text, dv_text = (x[None, :, :, : layer.text_len] for x in (dk, dv))
    if splits > 1:
        parts = (splits, *dk_text.shape[1:])
        dk_parts, dv_parts = (x.new_empty(parts, dtype=torch.float32) for x in (dk, dv))
    else:
        dk_parts, dv_parts = dk_text, dv_text
    query_launch = launch_parameters("query_gradient", q, layer.pattern)
    query_gradient_call(layer, query_launch, do, q, k, v, o, lse, dq, delta).run(q)
    key_gradient_call(layer, launch, do, q, k, v, lse, delta, dk, dv, dk_parts, dv_parts).run(q)
    if splits > 1:
        dk_text[0].copy_(dk_parts.sum(dim=0))
        dv_text[0].copy_(dv_parts.sum(dim=0))
    return dq, dk, dv
