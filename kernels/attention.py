"""The public face of attention: checks its inputs, chooses an implementation, and never falls back silently.

Legend: B batch, H heads, T sequence, D head dim.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from kernels.inputs import autocast, check_prefix_lengths, check_qkv, check_scale
from kernels.limits import suits_triton
from kernels.patterns import Pattern
from kernels.reference import attention_reference
from kernels.structured import attention_structured

Impl = Literal["auto", "triton", "structured", "reference"]
IMPLS = ("auto", "triton", "structured", "reference")


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
    q, k, v = autocast(q, k, v)
    check_qkv(q, k, v)
    check_scale(scale)
    if not q.shape == k.shape == v.shape:
        raise ValueError(f"q, k and v differ in shape: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if q.shape[2] != pattern.seq_len:
        raise ValueError(
            f"q, k and v hold {q.shape[2]} positions, the pattern {pattern.seq_len} "
            f"({pattern.text_len} text + {pattern.height}x{pattern.width} image)"
        )
    check_prefix_lengths(prefix_lengths, q, pattern)
    return _implementation(impl, q)(q, k, v, pattern, scale=scale, prefix_lengths=prefix_lengths)


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
