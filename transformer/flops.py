"""How many floating point operations a prior's matrix products take, counted from its sizes.

A product of (n, k) and (k, m) is 2 n k m of them. Of attention, the pairs count that its mask lets through; of the
heads, the positions that have a target. Norms, activations, the softmax, tables and the optimiser are left out, and so
is what activation checkpointing computes a second time: this is what the model asks for, not what a machine was made to
do. Backward passes take two products for each forward one.

Shapes: T sequence, C n_embd, D head dim, H heads.
"""

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import torch

from kernels.patterns import Pattern, attends
from transformer.blocks import swiglu_width
from transformer.config import PriorConfig

TRAINING = 3
"""Forward and backward, in forward passes."""
ROWS = 1024  # of a mask at a time


class ForwardFlops(NamedTuple):
    """Of one picture and its caption, forwards."""

    projections: int  # in and out of the attention, all layers
    attention: int
    mlp: int
    text_head: int
    image_head: int


def forward_flops(config: PriorConfig, text_tokens: int | None = None) -> ForwardFlops:
    """`text_tokens`: of the caption, in 0 .. text_len - 1, BOS not being one; None: as many as fit.

    What does not depend on them is the same for every caption, pads included, as they are computed like the rest.
    """
    unused = 0 if text_tokens is None else config.text_len - 1 - text_tokens
    positions, width = config.seq_len * config.n_layer, config.n_embd
    pairs = sum(count * attended_pairs(config.pattern(kind)) for kind, count in Counter(config.layer_kinds).items())
    if not config.attend_pads:
        pairs -= config.n_layer * config.image_len * unused
    return ForwardFlops(
        projections=2 * positions * 4 * width**2,
        attention=2 * pairs * 2 * width,  # q k and p v, of D = C / H numbers in each of H heads
        mlp=2 * positions * mlp_weights(config),
        text_head=2 * (config.text_len - 1 - unused) * width * config.text_vocab_size,
        image_head=2 * config.image_len * width * config.codebook_size,
    )


def mlp_weights(config: PriorConfig) -> int:
    """Of one block, biases left out."""
    if config.block == "modern":
        return 3 * config.n_embd * swiglu_width(config)
    return 2 * config.mlp_ratio * config.n_embd**2


@lru_cache
def attended_pairs(pattern: Pattern) -> int:
    """How many pairs of query and key the mask lets through, text pads among them."""
    keys = torch.arange(pattern.seq_len)
    return sum(int(attends(pattern, rows[:, None], keys).sum()) for rows in keys.split(ROWS))


class TrainingFlops(NamedTuple):
    """Of a training step, forwards and backwards: for each picture, and for each token of its caption."""

    picture: int
    text_token: int


def training_flops(config: PriorConfig) -> TrainingFlops:
    none, one = (sum(forward_flops(config, text_tokens)) for text_tokens in (0, 1))
    return TrainingFlops(TRAINING * none, TRAINING * (one - none))
