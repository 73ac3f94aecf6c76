"""The public face of a decoding step: a few image queries against a cache, the rows of `attention` that are theirs.

Legend: B batch, P texts, H heads, L text_len, R slots of the ring, N new queries, D head dim, S local image keys.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.cache_layout import KeysValues, check_ring, ring_positions
from kernels.inputs import autocast, check_cache, check_prefix_lengths, check_scale
from kernels.limits import MAX_NEW, needs_gradients, suits_triton
from kernels.patterns import Pattern, attends_image

StepImpl = Literal["auto", "triton", "structured"]
STEP_IMPLS = ("auto", "triton", "structured")


def attention_step(
    q: Tensor,
    text: KeysValues,
    image: KeysValues,
    pattern: Pattern,
    index: int | Tensor,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
    impl: StepImpl = "auto",
) -> Tensor:
    """The rows of `attention` of the raster positions `index .. index + N - 1`, against a cache: one decoding step.

    Args:
        q: (B, H, N, D), the new queries, in order.
        text: (P, H, L, D), keys and values of P texts; B / P samples in a row share one.
        image: (B, H, R, D), a ring of image keys and values (cache_layout.py), the new queries' own included. It can be
            as long as the image, or no longer than these queries and their pattern need: from position 0 on, it can be
            the new keys alone. What lies in slots that were never filled is not attended to, but "structured" wants it
            to be finite (a zeroed ring is).
        index: raster position of the first query; or, for steps that are captured or compiled once for all positions, a
            0-d integer tensor on q's device, which is taken on trust, and so is the ring's length.
        scale: factor on the scores, positive; None: 1 / sqrt(D).
        prefix_lengths: (B,) int32 or int64 in [0, L]: sample b sees only its first n text keys. None: all of them.
        impl: "triton" (a kernel that reads only what is seen; without gradients), "structured" (plain torch, masked) or
            "auto": triton where it is for `attention`, N is at most 16 and no gradients are needed; else structured.

    Returns:
        (B, H, N, D).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, the pattern or impl="triton", a ring that is
            too short, a scale that is not positive, or an unknown impl.
    """
    q, text_k, text_v, image_k, image_v = autocast(q, *text, *image)
    text, image = KeysValues(text_k, text_v), KeysValues(image_k, image_v)
    check_scale(scale)
    check_cache(q, text, image, pattern)
    _check_index(index, q, image, pattern)
    check_prefix_lengths(prefix_lengths, q, pattern)
    step = _implementation(impl, q, text, image)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    return step(q, text, image, pattern, index, scale=scale, prefix_lengths=prefix_lengths)


def _implementation(impl: str, q: Tensor, text: KeysValues, image: KeysValues) -> Callable[..., Tensor]:
    if impl not in STEP_IMPLS:
        raise ValueError(f"unknown impl {impl!r}, expected one of {', '.join(STEP_IMPLS)}")
    if impl == "auto":
        suits = suits_triton(q) and q.shape[2] <= MAX_NEW and not needs_gradients(q, *text, *image)
        impl = "triton" if suits else "structured"
    if impl == "triton":
        # Only here, as it needs Triton, and all else does without.
        from kernels.decode import decode_step

        return decode_step
    return _structured_step if q.shape[2] <= MAX_NEW else _structured_beginning


def _structured_step(
    q: Tensor,
    text: KeysValues,
    image: KeysValues,
    pattern: Pattern,
    index: int | Tensor,
    *,
    scale: float,
    prefix_lengths: Tensor | None,
) -> Tensor:
    """One softmax over text and local keys; the samples of a text are so many more queries of its keys."""
    local, seen = _local_keys(q, image, pattern, index)
    scaled = _wide(q) * scale
    scores = _scores(scaled, local.k).masked_fill(~seen, -math.inf)  # (B, H, N, S)
    text_scores = _by_sample(_scores(_by_text(scaled, text.k), text.k), q)  # (B, H, N, L)
    if prefix_lengths is not None:
        text_scores = text_scores.masked_fill(~_used(prefix_lengths, text.k), -math.inf)
    weights = computed_once(torch.cat([text_scores, scores], dim=-1).softmax(dim=-1))
    of_text, of_image = weights.split([text.k.shape[2], local.k.shape[2]], dim=-1)
    from_text = _by_sample(_weighted(_by_text(of_text, text.v), text.v), q)  # (B, H, N, D)
    return (from_text + _weighted(of_image, local.v)).to(q.dtype)


def _structured_beginning(
    q: Tensor,
    text: KeysValues,
    image: KeysValues,
    pattern: Pattern,
    index: int | Tensor,
    *,
    scale: float,
    prefix_lengths: Tensor | None,
) -> Tensor:
    """Of many queries by PyTorch's attention, which writes no scores down."""
    local, seen = _local_keys(q, image, pattern, index)
    samples = len(q) // len(text.k)
    k, v = (torch.cat([x.repeat_interleave(samples, dim=0), y], dim=2) for x, y in zip(text, local, strict=True))
    of_text = torch.ones(1, 1, 1, text.k.shape[2], dtype=torch.bool, device=q.device)
    if prefix_lengths is not None:
        of_text = _used(prefix_lengths, text.k)
    shape = len(of_text), 1, q.shape[2], -1
    mask = torch.cat([of_text.expand(shape), seen.expand(shape)], dim=3)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _local_keys(q: Tensor, image: KeysValues, pattern: Pattern, index: int | Tensor) -> tuple[KeysValues, Tensor]:
    """The image keys that the queries may see, and which of them each sees: bool (1, 1, N, S)."""
    new, slots = q.shape[2], image.k.shape[2]
    q_pos = torch.arange(new, device=q.device) + index
    if pattern.kind == "column" and new == 1 and slots == pattern.image_len:
        column = q_pos % pattern.width
        grid = pattern.height, pattern.width
        image = KeysValues(*(x.unflatten(2, grid).index_select(3, column).squeeze(3) for x in image))
        k_pos = torch.arange(pattern.height, device=q.device) * pattern.width + column
    else:
        k_pos = ring_positions(slots, index + new - 1, q.device)
    seen = (k_pos >= 0) & attends_image(pattern, q_pos[:, None], k_pos.clamp(min=0))
    return image, seen[None, None]


def _used(prefix_lengths: Tensor, text_k: Tensor) -> Tensor:
    """Which text keys each sample sees: bool (B, 1, 1, L)."""
    return torch.arange(text_k.shape[2], device=text_k.device) < prefix_lengths[:, None, None, None]


def _by_text(x: Tensor, text_k: Tensor) -> Tensor:
    """(B, H, N, X) -> (P, H, B / P * N, X): a text's samples side by side."""
    texts = len(text_k)
    if len(x) == texts:
        return x
    return x.unflatten(0, (texts, -1)).transpose(1, 2).flatten(2, 3)


def _by_sample(x: Tensor, q: Tensor) -> Tensor:
    """Back from `_by_text`, for queries q."""
    if len(x) == len(q):
        return x
    return x.unflatten(2, (-1, q.shape[2])).transpose(1, 2).flatten(0, 1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """(..., M, D) and (..., S, D) -> (..., M, S)."""
    if _written_out(q):
        return (q[..., :, None, :] * _wide(k)[..., None, :, :]).sum(dim=-1)
    return q @ _wide(k).mT


def _weighted(weights: Tensor, v: Tensor) -> Tensor:
    """(..., M, S) and (..., S, D) -> (..., M, D)."""
    if _written_out(weights):
        return (weights[..., None] * _wide(v)[..., None, :, :]).sum(dim=-2)
    return weights @ _wide(v)


def _wide(x: Tensor) -> Tensor:
    """In at least float32: products in 16 bits would round the scores, which PyTorch's attention does not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def computed_once(x: Tensor) -> Tensor:
    """x, contiguous; a compiler that would compute it anew wherever a loop needs it keeps it in memory.

    To Inductor, a view by explicit strides is of something that lies in memory.
    """
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


def _written_out(x: Tensor) -> bool:
    """Compilers for CPUs make one loop of products and sums, and a call of a library of each matrix product."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.shape[-2] <= MAX_NEW


def _check_index(index: int | Tensor, q: Tensor, image: KeysValues, pattern: Pattern) -> None:
    if isinstance(index, int):
        check_ring(pattern, image.k.shape[2], index, q.shape[2])
    elif not isinstance(index, Tensor):
        raise ValueError(f"index is {index!r}, expected an int or a tensor (0-d)")
    elif index.ndim != 0 or index.dtype not in (torch.int32, torch.int64) or index.device != q.device:
        raise ValueError(
            f"index is a tensor of shape {tuple(index.shape)}, {index.dtype}, on {index.device}, "
            f"expected a 0-d int32 or int64 tensor on {q.device}"
        )
