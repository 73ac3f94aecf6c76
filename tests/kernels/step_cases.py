"""What tests of decoding steps share: samples of common texts, and caches as a step finds them."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cache_layout import KeysValues, ring_positions
from kernels.patterns import Pattern, attention_mask
from tests.kernels.oracle import DEVICE, packed, unpack


def inputs(
    pattern: Pattern, batch=2, heads=1, head_dim=16, dtype=torch.float32, samples: int = 1, device=DEVICE
) -> Tensor:
    """q, k and v of whole sequences, `packed`; each `samples` in a row have the keys and values of one text."""
    qkv = packed(pattern, batch, heads, head_dim)
    text = qkv[:, : pattern.text_len, 1:]
    text.copy_(text[::samples].repeat_interleave(samples, dim=0))
    return qkv.to(device, dtype)


def shortest(pattern: Pattern, new: int = 1) -> int:
    """The length of a ring that can take `new` queries at once."""
    return min(pattern.image_len, pattern.ring_len + new - 1)


class Step(NamedTuple):
    """The first arguments of `attention_step`."""

    q: Tensor
    text: KeysValues
    image: KeysValues
    pattern: Pattern
    index: int


def step_of(
    qkv: Tensor, pattern: Pattern, index: int, new: int, slots: int, prefix_lengths=None, samples=1, unseen=torch.nan
) -> Step:
    """A ring of `slots` after raster position `index + new - 1`; what none of the queries sees is `unseen`."""
    q, k, v = unpack(qkv)
    text_len, last = pattern.text_len, index + new - 1
    held = ring_positions(slots, last, qkv.device)
    filled, held = held >= 0, held.clamp(min=0)
    q_pos = torch.arange(index, last + 1, device=qkv.device) + text_len
    text_pos = torch.arange(text_len, device=qkv.device)
    of_text = attention_mask(pattern, q_pos, text_pos, prefix_lengths).any(dim=2)[..., None]  # (B or 1, 1, L, 1)
    of_text = of_text if len(of_text) == 1 else of_text.unflatten(0, (-1, samples)).any(dim=1)
    of_image = filled[:, None] & attention_mask(pattern, q_pos, held + text_len).any(dim=2)[..., None]
    text = (torch.where(of_text, x[::samples, :, :text_len], unseen) for x in (k, v))
    image = (torch.where(of_image, x[:, :, held + text_len], unseen) for x in (k, v))
    return Step(q[:, :, q_pos], KeysValues(*text), KeysValues(*image), pattern, index)


def rows_of(x: Tensor, pattern: Pattern, index: int, new: int) -> Tensor:
    """(B, H, T, D) -> the rows (B, H, N, D) of a step."""
    return x[:, :, pattern.text_len + index :][:, :, :new]


def zeros(pattern: Pattern, new: int = 1, batch: int = 1, texts: int = 1, head_dim: int = 16, **options) -> Step:
    """A step at raster position 0 with a ring as long as the image."""
    q, text, image = (
        torch.zeros(count, 1, length, head_dim, **{"device": DEVICE} | options)
        for count, length in ((batch, new), (texts, pattern.text_len), (batch, pattern.image_len))
    )
    return Step(q, KeysValues(text, text), KeysValues(image, image), pattern, 0)
