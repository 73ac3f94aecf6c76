"""Which keys a query attends to: causal, row, column and convolutional masks of the DALL-E prior.

Source: "Zero-Shot Text-to-Image Generation", appendix B.1, https://arxiv.org/abs/2102.12092

A sequence is `text_len` text positions followed by `height * width` image positions in raster order. Text is plainly
causal; an image query sees every text key, and among the image keys those that its pattern's rule allows.

Each rule is one function of (query, key) written once, as arithmetic on integers: it runs on torch tensors and inside a
Triton kernel alike, so every implementation and every dense mask derives from the same line. A new pattern is one rule
plus one line in `RULES`.

Legend: B batch, T sequence, Q queries, K keys; `half` = (conv_kernel - 1) / 2; row and column indices count from 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["causal", "row", "column", "conv"]
ConvWrap = Literal["linear", "clamped", "modulo"]

# The rules take raster positions q, k >= 0 inside the image, as integers or integer tensors, and say whether q sees k.
# Each lets a query see itself and nothing of its future. They carry no annotations but of plain types, as Triton would
# look the names up on the device.
# Triton's // and % truncate towards zero where Python's and torch's round down, so no rule lets the outcome depend on
# dividing a negative number.


def causal_rule(q, k, width: int, half: int):
    """Every image key up to and including the query itself."""
    return k <= q


def row_rule(q, k, width: int, half: int):
    """The query and the `width` keys before it; it runs on across row ends, so the farthest is the token above."""
    return (k <= q) & (q - k <= width)


def column_rule(q, k, width: int, half: int):
    """The query's own column, rows up to and including its own."""
    return (k <= q) & (q % width == k % width)


def conv_linear_rule(q, k, width: int, half: int):
    """Raster offsets {0..half} and {width*r + c : r = 1..half, c = -half..half}: wraps across row ends like `row`."""
    offset = q - k
    own_row = offset <= half
    rows_above = (offset >= width - half) & (offset <= half * width + half) & ((offset + half) % width <= 2 * half)
    return (offset >= 0) & (own_row | rows_above)


def conv_clamped_rule(q, k, width: int, half: int):
    """A plain two-dimensional window, cut off at the picture's edges: nothing wraps."""
    columns_left = q % width - k % width
    return (k <= q) & (q // width - k // width <= half) & (columns_left <= half) & (columns_left >= -half)


def conv_modulo_rule(q, k, width: int, half: int):
    """The window wraps inside each row above; in its own row a query sees the `half` keys to its left, unwrapped.

    (Wrapping the own row would mean keys to the query's right, which lie in its future.)
    """
    rows_up = q // width - k // width
    columns_left = q % width - k % width
    own_row = (rows_up == 0) & (columns_left <= half)
    rows_above = (rows_up > 0) & (rows_up <= half) & ((columns_left + width + half) % width <= 2 * half)
    return (k <= q) & (own_row | rows_above)


class Rule(NamedTuple):
    """A rule and its reach: no query sees a key more than `reach(width, half)` raster positions back (None: any)."""

    allows: Callable[[Any, Any, int, int], Any]
    reach: Callable[[int, int], int] | None
    by_offset: bool
    """Whether the rule asks for q - k alone, so that it looks the same from every position; else from every row."""


RULES: dict[tuple[str, str | None], Rule] = {
    ("causal", None): Rule(causal_rule, None, by_offset=True),
    ("row", None): Rule(row_rule, lambda width, half: width, by_offset=True),
    ("column", None): Rule(column_rule, None, by_offset=False),
    ("conv", "linear"): Rule(conv_linear_rule, lambda width, half: half * width + half, by_offset=True),
    ("conv", "clamped"): Rule(conv_clamped_rule, lambda width, half: half * width + half, by_offset=False),
    ("conv", "modulo"): Rule(conv_modulo_rule, lambda width, half: half * width + width - 1, by_offset=False),
}
KINDS = tuple(dict.fromkeys(kind for kind, _ in RULES))
CONV_WRAPS = tuple(wrap for _, wrap in RULES if wrap is not None)


# A pattern as arguments of an operator of torch.library, which takes no objects.
PATTERN_SCHEMA = "str kind, int text_len, int height, int width, int conv_kernel, str conv_wrap"


@dataclass(frozen=True)
class Pattern:
    """One attention layer's mask over a joint sequence of text and image tokens.

    Args:
        kind: "causal", "row", "column" or "conv".
        text_len: number of text positions, at least 1 (position 0 begins the sequence).
        height: rows of the image grid, at least 1.
        width: columns of the image grid, at least 1.
        conv_kernel: side of the conv window, odd; the other kinds ignore it.
        conv_wrap: what happens at the row ends under "conv": "linear", "clamped" or "modulo"; the others ignore it.

    Raises:
        ValueError: a value outside the ranges above.
    """

    kind: Kind
    text_len: int
    height: int
    width: int
    conv_kernel: int = 11
    conv_wrap: ConvWrap = "linear"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.conv_wrap not in CONV_WRAPS:
            raise ValueError(f"unknown conv_wrap {self.conv_wrap!r}, expected one of {', '.join(CONV_WRAPS)}")
        for name in ("text_len", "height", "width", "conv_kernel"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd number")

    @property
    def settings(self) -> tuple[Any, ...]:
        """The arguments of the constructor in order, as operators take them (`PATTERN_SCHEMA`)."""
        return self.kind, self.text_len, self.height, self.width, self.conv_kernel, self.conv_wrap

    @property
    def image_len(self) -> int:
        return self.height * self.width

    @property
    def seq_len(self) -> int:
        return self.text_len + self.image_len

    @property
    def half(self) -> int:
        return (self.conv_kernel - 1) // 2

    @property
    def rule(self) -> Rule:
        return RULES[self.kind, self.conv_wrap if self.kind == "conv" else None]

    @property
    def reach(self) -> int | None:
        """How many raster positions back an image query can see at most; None: back to the image's first token."""
        return None if self.rule.reach is None else self.rule.reach(self.width, self.half)

    @property
    def ring_len(self) -> int:
        """How many image keys decoding one by one needs to keep: what is in reach."""
        return self.image_len if self.reach is None else min(self.image_len, self.reach + 1)


def attends_image(pattern: Pattern, q: Tensor, k: Tensor) -> Tensor:
    """Whether image query `q` sees image key `k`: integer raster positions >= 0 that broadcast -> bool."""
    return pattern.rule.allows(q, k, pattern.width, pattern.half)


def attends(pattern: Pattern, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Whether the query at sequence position `q_pos` sees the key at `k_pos` (integer tensors that broadcast) -> bool.

    An image key that is not in the query's future implies an image query, so text queries need no case of their own.
    """
    seen_in_image = attends_image(pattern, q_pos - pattern.text_len, k_pos - pattern.text_len)
    return (k_pos <= q_pos) & ((k_pos < pattern.text_len) | seen_in_image)


def attention_mask(pattern: Pattern, q_pos: Tensor, k_pos: Tensor, prefix_lengths: Tensor | None = None) -> Tensor:
    """The mask of some queries over some keys, as scaled_dot_product_attention takes it; True attends.

    Args:
        q_pos: (Q,) integer sequence positions.
        k_pos: (K,) integer sequence positions.
        prefix_lengths: (B,) integers; image queries of sample b see only its first n text keys. None: all.

    Returns:
        bool (1, 1, Q, K), or (B, 1, Q, K) with prefix_lengths.
    """
    q_pos, k_pos = q_pos[:, None], k_pos[None, :]
    mask = attends(pattern, q_pos, k_pos)[None, None]  # (1, 1, Q, K)
    if prefix_lengths is None:
        return mask
    used = k_pos < prefix_lengths[:, None, None, None]  # (B, 1, 1, K)
    return mask & (used | (q_pos < pattern.text_len) | (k_pos >= pattern.text_len))


def dense_mask(pattern: Pattern, device: torch.device | str | None = None) -> Tensor:
    """The whole mask, bool (T, T), rows are queries; for tests, pictures and oracles: the fast paths never build it."""
    positions = torch.arange(pattern.seq_len, device=device)
    return attends(pattern, positions[:, None], positions[None, :])
