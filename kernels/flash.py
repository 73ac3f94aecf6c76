"""Attention under the DALL-E masks by Triton kernels: forward and backward, only the blocks that a mask needs.

One softmax over text and image keys, computed block by block as in FlashAttention-2 (https://arxiv.org/abs/2307.08691),
in base 2 and float32. A tile of queries walks up to three loops over its keys, all of them by arithmetic:

    text     the text keys that its sample uses; no mask
    dense    under causal masks what lies before the tile; no mask
    span     what lies around the tile (tiles.py), masked by the pattern's rule

Backward there are two kernels: one of tiles of queries, which gives dQ by the same walk (and delta = sum(o do) on the
way), and one of tiles of keys, which gives dK and dV by the walk turned round. Text keys are seen by every image query:
their tiles walk all of the image, in `splits` that are added up afterwards, in a fixed order and without atomics.

It is an operator of torch.library, `imagewords::attention`: compilers keep it whole, checkpointing and autocast work.
Its lse output is the log-sum-exp of the scores in base 2, which only the backward pass needs.

Legend: B batch, H heads, T sequence, D head dim, L text_len.
"""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from kernels.flash_launch import Layer, empty_rows, run_backward, run_forward
from kernels.jit import check_device
from kernels.limits import check_alike, check_limits, refuse_forward_mode
from kernels.patterns import PATTERN_SCHEMA, Pattern

_LAYER = f"Tensor? prefix_lengths, float scale, {PATTERN_SCHEMA}"


@torch.library.custom_op(
    "imagewords::attention", mutates_args=(), schema=f"(Tensor q, Tensor k, Tensor v, {_LAYER}) -> (Tensor, Tensor)"
)
def _attention(
    q: Tensor, k: Tensor, v: Tensor, prefix_lengths: Tensor | None, scale: float, *pattern: Any
) -> tuple[Tensor, Tensor]:
    """Returns o (B, H, T, D) and lse (B, H, T)."""
    check_limits(q)
    check_device(q)
    check_alike(q, k=k, v=v)
    return run_forward(Layer.of(Pattern(*pattern), scale, prefix_lengths), q, k, v)


@torch.library.custom_op(
    "imagewords::attention_backward",
    mutates_args=(),
    schema=f"(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, {_LAYER}) -> (Tensor, Tensor, Tensor)",
)
def _attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    prefix_lengths: Tensor | None,
    scale: float,
    *pattern: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dq, dk, dv, each (B, H, T, D)."""
    check_limits(q)
    check_device(q)
    check_alike(q, k=k, v=v, do=do, o=o)
    return run_backward(Layer.of(Pattern(*pattern), scale, prefix_lengths), do, q, k, v, o, lse)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_rows(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_attention_backward.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_rows(q), empty_rows(k), empty_rows(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, prefix_lengths, *ctx.settings = inputs
    o, lse = output
    ctx.save_for_backward(q, k, v, o, lse, prefix_lengths)
    ctx.mark_non_differentiable(lse)


def _gradients(ctx: Any, do: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, prefix_lengths = ctx.saved_tensors
    gradients = _attention_backward(do, q, k, v, o, lse, prefix_lengths, *ctx.settings)
    return (*gradients, None, *[None] * len(ctx.settings))


def _refuse_second_gradients(ctx: Any, *_: Any) -> NoReturn:
    raise RuntimeError("attention by impl='triton' has no second derivatives; impl='reference' has")


def _refuse_vmap(info: Any, in_dims: Any, *_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("attention by impl='triton' is not for torch.func.vmap: make that dimension part of B")


_attention.register_autograd(_gradients, setup_context=_save)
_attention_backward.register_autograd(_refuse_second_gradients)
_attention.register_vmap(_refuse_vmap)
_attention_backward.register_vmap(_refuse_vmap)


def attention_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
) -> Tensor:
    """Attention under `pattern` by Triton kernels. Once differentiable in q, k and v.

    Args:
        q, k, v: (B, H, T, D) with T = pattern.seq_len, any strides, float32, float16 or bfloat16; D at most 256.
        scale: factor on the scores, positive; None: 1 / sqrt(D).
        prefix_lengths: (B,) integers; image queries of sample b see only its first n text keys. None: all.

    Returns:
        (B, H, T, D), in memory (B, T, H, D).

    Raises:
        ValueError: a dtype, head dim or device that the kernels do not take.
        RuntimeError: forward-mode derivatives; in the backward pass, second ones; under torch.func.vmap.
    """
    check_limits(q)
    refuse_forward_mode(q, k, v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return _attention(q, k, v, prefix_lengths, scale, *pattern.settings)[0]
