"""Who competes in benchmarks/attention.py: our kernels, PyTorch's attention with a mask and dense, and FlexAttention.

FlexAttention (https://arxiv.org/abs/2412.05496) compiles a kernel for a rule: it gets the same rule as ours. For
column, whose keys are scattered in raster order, it competes once more with the image's tokens put into column order,
as a user would, and the output back into raster order; both are part of what is compiled and timed.

Legend: B batch, H heads, T sequence, D head dim.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import attention
from kernels.patterns import Pattern, attends, dense_mask

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v (B, H, T, D) -> o
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

OURS = "ours"
MAX_MASKED = 4352  # positions; beyond, a mask of T x T takes more time and memory than it tells
FLEX_BLOCKS = (64, 128)


class Contestant(NamedTuple):
    """`name` is "group" or "group/variant": of a group, the fastest counts."""

    name: str
    pattern: Pattern
    """What it computes, and is held against."""
    make: Callable[[], Attend]
    """Gets ready what is not timed. Whatever it raises, or a first call, makes the contestant absent."""


def line_up(pattern: Pattern, device: str) -> list[Contestant]:
    """All that compete under one mask on a device, ours first."""
    causal = replace(pattern, kind="causal")
    masked = Contestant("masked", pattern, partial(make_masked, pattern, device))
    if not device.startswith("cuda"):
        ours = Contestant(OURS, pattern, lambda: partial(attention, pattern=pattern, impl="structured"))
        return [ours, masked, Contestant("causal", causal, make_causal)]
    ours = Contestant(OURS, pattern, lambda: partial(attention, pattern=pattern, impl="triton"))
    return [ours, masked, *dense_backends(causal), *flex_contestants(pattern, device)]


def make_masked(pattern: Pattern, device: str) -> Attend:
    if pattern.seq_len > MAX_MASKED:
        raise ValueError(f"T is {pattern.seq_len}, masks are made up to {MAX_MASKED}")
    return partial(scaled_dot_product_attention, attn_mask=dense_mask(pattern, device))


def make_causal() -> Attend:
    return partial(scaled_dot_product_attention, is_causal=True)


def dense_backends(causal: Pattern) -> list[Contestant]:
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return [Contestant(f"causal/{name}", causal, partial(make_backend, chosen)) for name, chosen in backends.items()]


def make_backend(backend: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


# --- FlexAttention ---------------------------------------------------------------------------------------------------


def flex_contestants(pattern: Pattern, device: str, compiler: str | None = "inductor") -> list[Contestant]:
    """At each block size, and for column in column order too. `compiler` is a backend of torch.compile, None: eager."""
    makers = {"flex": make_flex} | ({"permuted": make_permuted_flex} if pattern.kind == "column" else {})
    return [
        Contestant(f"{name}/{block}", pattern, partial(make, pattern, device, block, compiler))
        for name, make in makers.items()
        for block in FLEX_BLOCKS
    ]


def make_flex(pattern: Pattern, device: str, block: int, compiler: str | None) -> Attend:
    """FlexAttention under `pattern`."""
    block_mask, options = make_block_mask(pattern, mask_mod(pattern), device, block), kernel_options(block)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=block_mask, kernel_options=options)

    return compiled(attend, compiler)


def make_permuted_flex(pattern: Pattern, device: str, block: int, compiler: str | None) -> Attend:
    """The same in column order, from and back into raster order."""
    block_mask = make_block_mask(pattern, column_order_mask_mod(pattern), device, block)
    options, text_len, height, width = kernel_options(block), pattern.text_len, pattern.height, pattern.width

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (swap_image_axes(x, text_len, height) for x in (q, k, v))
        return swap_image_axes(flex_attention(q, k, v, block_mask=block_mask, kernel_options=options), text_len, width)

    return compiled(attend, compiler)


def make_block_mask(pattern: Pattern, allows: MaskMod, device: str, block: int) -> BlockMask:
    return create_block_mask(allows, None, None, pattern.seq_len, pattern.seq_len, device, BLOCK_SIZE=block)


def compiled(attend: Attend, compiler: str | None) -> Attend:
    return attend if compiler is None else torch.compile(attend, backend=compiler, dynamic=False, fullgraph=True)


def kernel_options(block: int) -> dict[str, int]:
    """FlexAttention's own tiles are 128 long in places and must divide the mask's blocks; where they do, it chooses."""
    if block >= 128:
        return {}
    backward = ("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2")
    return dict.fromkeys(("fwd_BLOCK_M", "fwd_BLOCK_N", *backward), block)


def mask_mod(pattern: Pattern) -> MaskMod:
    """Our rule as FlexAttention takes one."""

    def allows(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return attends(pattern, q_idx, kv_idx)

    return allows


def column_order_mask_mod(pattern: Pattern) -> MaskMod:
    """The column rule for positions in column order, as a user would write it: the same column, not the future."""
    text_len, height = pattern.text_len, pattern.height

    def allows(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        same_column = (q_idx - text_len) // height == (kv_idx - text_len) // height
        return (kv_idx <= q_idx) & ((kv_idx < text_len) | same_column)

    return allows


def swap_image_axes(x: Tensor, text_len: int, rows: int) -> Tensor:
    """(B, H, T, D): the image's `rows` become its columns, the text stays."""
    image = rearrange(x[:, :, text_len:], "batch head (row column) d -> batch head (column row) d", row=rows)
    return torch.cat([x[:, :, :text_len], image], dim=2)
