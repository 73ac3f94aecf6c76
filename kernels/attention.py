"""The public face of attention: checks its inputs, chooses an implementation, and never falls back silently.

Legend: B batch, H heads, T sequence, S cached keys, N new queries, D head dim.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.cache_layout import cached_positions, check_cached
from kernels.limits import MAX_NEW, needs_gradients, suits_triton
from kernels.patterns import Pattern, attention_mask
from kernels.reference import attention_reference
from kernels.structured import attention_structured

Impl = Literal["auto", "triton", "structured", "reference"]
IMPLS = ("auto", "triton", "structured", "reference")
LEAST_SCALE = torch.finfo(torch.float32).tiny  # with less, what is masked would be -inf times 0
StepImpl = Literal["auto", "triton", "structured"]
STEP_IMPLS = ("auto", "triton", "structured")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention over a joint text and image sequence under `pattern`. Once differentiable in q, k and v, backwards.

    Under autocast q, k and v are taken to its dtype, as PyTorch's own scaled_dot_product_attention does.

    Args:
        q, k, v: (B, H, T, D) with T = pattern.seq_len, any strides, one dtype and one device.
        pattern: the mask.
        scale: factor on the scores, positive; None: 1 / sqrt(D).
        prefix_lengths: (B,) int32 or int64 in [0, text_len]: image queries of sample b see only its first n text keys
            (text queries stay causal). None: all of them, as in the paper.
        impl: "triton" (kernels for CUDA devices), "structured" (plain torch, sparse), "reference" (the explicit oracle)
            or "auto": triton on CUDA devices of compute capability 8.0 or more under Linux, for float32, float16 and
            bfloat16 and a head dim of at most 256; structured for all else.

    Returns:
        (B, H, T, D) in the dtype of the (autocast) inputs.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, the pattern or impl="triton", a scale that is
            not positive, or an unknown impl.
    """
    q, k, v = _autocast(q, k, v)
    _check_qkv(q, k, v)
    _check_scale(scale)
    if not q.shape == k.shape == v.shape:
        raise ValueError(f"q, k and v differ in shape: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[2] != pattern.seq_len:
        raise ValueError(
            f"q, k and v hold {q.shape[2]} positions, the pattern {pattern.seq_len} "
            f"({pattern.text_len} text + {pattern.height}x{pattern.width} image)"
        )
    _check_prefix_lengths(prefix_lengths, q, pattern)
    return _implementation(impl, q)(q, k, v, pattern, scale=scale, prefix_lengths=prefix_lengths)


def attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    position: int | Tensor,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
    impl: StepImpl = "auto",
) -> Tensor:
    """The rows `position .. position + N - 1` of `attention`, against a cache of keys and values: one decoding step.

    The cache is laid out as cache_layout.py says: the text's keys, then a ring of image keys. It can be as long as the
    sequence, or no longer than these queries and their pattern need: from position 0 on, it can be the new keys alone.

    Args:
        q: (B, H, N, D), the new queries, in order.
        k, v: (B, H, S, D), S <= pattern.seq_len, the new queries' own keys and values included. What lies in slots that
            were never filled is not attended to, but "structured" wants it to be finite (a zeroed static cache is).
        position: sequence position of the first query; or, for steps that are captured or compiled once for all
            positions, a 0-d integer tensor on q's device, which is taken on trust, and so is the cache's length.
        scale, prefix_lengths: as for `attention`.
        impl: "triton" (a kernel that reads only what is seen; without gradients), "structured" (plain torch, masked) or
            "auto": triton where it is for `attention`, N is at most 16 and no gradients are needed; else structured.

    Returns:
        (B, H, N, D).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, the pattern or impl="triton", a cache that is
            too short, a scale that is not positive, or an unknown impl.
    """
    q, k, v = _autocast(q, k, v)
    _check_qkv(q, k, v)
    _check_scale(scale)
    if k.shape != v.shape or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(f"q, k and v do not fit: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    _check_position(position, q, k, pattern)
    _check_prefix_lengths(prefix_lengths, q, pattern)
    step = _step_implementation(impl, q, k, v)
    return step(q, k, v, pattern, position, scale=scale, prefix_lengths=prefix_lengths)


def _step_implementation(impl: str, q: Tensor, k: Tensor, v: Tensor) -> Callable[..., Tensor]:
    if impl not in STEP_IMPLS:
        raise ValueError(f"unknown impl {impl!r}, expected one of {', '.join(STEP_IMPLS)}")
    if impl == "auto":
        suits = suits_triton(q) and q.shape[2] <= MAX_NEW and not needs_gradients(q, k, v)
        impl = "triton" if suits else "structured"
    if impl == "triton":
        # Only here, as it needs Triton, and all else does without.
        from kernels.decode import decode_step

        return decode_step
    return _structured_step


def _structured_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    position: int | Tensor,
    *,
    scale: float | None,
    prefix_lengths: Tensor | None,
) -> Tensor:
    last = position + q.shape[2] - 1
    positions = cached_positions(pattern, k.shape[2], last, q.device)
    if isinstance(position, int):  # no slot beyond the last position has been filled
        k, v, positions = k[:, :, : last + 1], v[:, :, : last + 1], positions[: last + 1]
    q_pos = torch.arange(q.shape[2], device=q.device) + position
    mask = attention_mask(pattern, q_pos, positions, prefix_lengths)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _implementation(impl: str, q: Tensor) -> Callable[..., Tensor]:
    if impl not in IMPLS:
        raise ValueError(f"unknown impl {impl!r}, expected one of {', '.join(IMPLS)}")
    if impl == "auto":
        impl = "triton" if suits_triton(q) else "structured"
    if impl == "triton":
        # Only here, as it needs Triton, and all else does without.
        from kernels.flash import attention_flash

        return attention_flash
    return attention_reference if impl == "reference" else attention_structured


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    # float64 is left alone by autocast everywhere.
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected (B, H, T, D)")
        if x.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected at least 1 everywhere")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.dtype.is_floating_point:
        raise ValueError(f"q, k and v are {q.dtype}, expected floating point")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v are on different devices: {q.device}, {k.device}, {v.device}")


def _check_position(position: int | Tensor, q: Tensor, k: Tensor, pattern: Pattern) -> None:
    if isinstance(position, int):
        check_cached(pattern, k.shape[2], position, q.shape[2])
    elif not isinstance(position, Tensor):
        raise ValueError(f"position is {position!r}, expected an int or a tensor (0-d)")
    elif position.ndim != 0 or position.dtype not in (torch.int32, torch.int64) or position.device != q.device:
        raise ValueError(
            f"position is a tensor of shape {tuple(position.shape)}, {position.dtype}, on {position.device}, "
            f"expected a 0-d int32 or int64 tensor on {q.device}"
        )


def _check_scale(scale: float | None) -> None:
    if scale is not None and not (isinstance(scale, int | float) and LEAST_SCALE <= scale < math.inf):
        raise ValueError(
            f"scale is {scale!r}, expected a positive number, an int or a float (of at least {LEAST_SCALE:.1e})"
        )


def _check_prefix_lengths(prefix_lengths: Tensor | None, q: Tensor, pattern: Pattern) -> None:
    if prefix_lengths is None:
        return
    if not isinstance(prefix_lengths, Tensor):
        raise ValueError(f"prefix_lengths is {prefix_lengths!r}, expected a tensor of int32 or int64, one a sample")
    if prefix_lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"prefix_lengths is {prefix_lengths.dtype}, expected int32 or int64")
    if prefix_lengths.shape != q.shape[:1]:
        raise ValueError(
            f"prefix_lengths has shape {tuple(prefix_lengths.shape)}, expected ({q.shape[0]},), one a sample"
        )
    if prefix_lengths.device != q.device:
        raise ValueError(f"prefix_lengths is on {prefix_lengths.device}, q on {q.device}")
    # Values on another device are not read back: waiting for it every layer would cost more than the check is worth.
    # Neither are they where they are not there yet.
    read = q.device.type == "cpu" and not torch.compiler.is_compiling()
    if read and not ((prefix_lengths >= 0) & (prefix_lengths <= pattern.text_len)).all():
        raise ValueError(f"prefix_lengths holds {prefix_lengths.tolist()}, expected 0..{pattern.text_len} (text_len)")
