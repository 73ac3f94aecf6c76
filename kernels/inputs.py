"""What attention over a sequence and a decoding step ask of their inputs.

Legend: B batch, P texts, H heads, T sequence, D head dim.
"""

import math

import torch
from torch import Tensor

from kernels.cache_layout import KeysValues
from kernels.patterns import Pattern

LEAST_SCALE = torch.finfo(torch.float32).tiny  # with less, what is masked would be -inf times 0


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    # float64 is left alone by autocast everywhere.
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
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


def check_cache(q: Tensor, text: KeysValues, image: KeysValues, pattern: Pattern) -> None:
    for name, keys in (("text", text), ("image", image)):
        check_qkv(q, *keys)
        if keys.k.shape != keys.v.shape or (q.shape[1], q.shape[3]) != (keys.k.shape[1], keys.k.shape[3]):
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, *keys))
            raise ValueError(f"q and the keys and values of the {name} do not fit: {shapes}")
    if len(image.k) != len(q) or len(q) % len(text.k):
        raise ValueError(
            f"{len(q)} samples against {len(image.k)} images and {len(text.k)} texts, expected as many images, and "
            "texts that divide them"
        )
    if text.k.shape[2] != pattern.text_len:
        raise ValueError(f"text keys of {text.k.shape[2]} positions, the pattern's text has {pattern.text_len}")


def check_scale(scale: float | None) -> None:
    if scale is not None and not (isinstance(scale, int | float) and LEAST_SCALE <= scale < math.inf):
        raise ValueError(
            f"scale is {scale!r}, expected a positive number, an int or a float (of at least {LEAST_SCALE:.1e})"
        )


def check_prefix_lengths(prefix_lengths: Tensor | None, q: Tensor, pattern: Pattern) -> None:
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
