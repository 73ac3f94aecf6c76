"""What attention under a mask must compute and move at the least, and the least time for it.

    pairs      (query, key) that the mask allows
    blocks     64x64 of them that hold at least one pair, positions in a given order
    gathered   the same for a kernel that may gather its keys: 64 queries need ceil(keys seen by any / 64) blocks
    FLOPs      4 D a pair forward (two products), 10 D backward (five: the scores again, dP, dV, dQ, dK)
    bytes      q, k, v in, o and lse (float32) out; backward q, k, v, o, do, lse in, dq, dk, dv out; each once

The roof of a pass is the longer of two times: the matrix products of its gathered blocks, in the order that has the
fewest, at the rate of a large matrix product, and its bytes at the rate of a large copy (ceilings.py). Row, column and
causal gather no fewer blocks than hold pairs; conv in windows does, and so has a lower roof.

Legend: B batch, H heads, T sequence, D head dim.
"""

from functools import cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.ceilings import Ceilings, Work
from kernels.patterns import Pattern, attends

BLOCK = 64
ORDERS = {"causal": ("raster",), "row": ("raster",), "column": ("column",), "conv": ("raster", "4x16", "8x8")}
PASSES = ("fwd", "bwd", "fwd+bwd")


class Counts(NamedTuple):
    """Of one head."""

    pairs: int
    blocks: int
    gathered: int


@cache
def count(pattern: Pattern, order: str) -> Counts:
    """Counts by the pattern's rule, 64 queries at a time against the keys in their reach."""
    positions = in_order(pattern, order)
    index = torch.empty_like(positions)
    index[positions.long()] = torch.arange(len(positions), dtype=torch.int32)
    pairs = blocks = gathered = 0
    for queries in positions.split(BLOCK):
        keys = _keys_in_reach(pattern, queries)
        seen = attends(pattern, queries[:, None], keys[None, :])
        visible = keys[seen.any(dim=0)]
        pairs += int(seen.sum())
        blocks += len((index[visible.long()] // BLOCK).unique())
        gathered += -(-len(visible) // BLOCK)
    return Counts(pairs, blocks, gathered)


def in_order(pattern: Pattern, order: str) -> Tensor:
    """Sequence positions (T,), int32: the text, then the image in "raster" or "column" order or by tiles, "8x8"."""
    text = torch.arange(pattern.text_len, dtype=torch.int32)
    image = torch.arange(pattern.image_len, dtype=torch.int32)
    if order == "column":
        image = rearrange(image, "(row column) -> (column row)", row=pattern.height)
    elif order != "raster":
        tile_h, tile_w = map(int, order.split("x"))
        y, x = image // pattern.width, image % pattern.width
        tile = y // tile_h * pattern.width + x // tile_w  # tiles of a row of tiles differ by less than the width
        image = image[torch.argsort(tile, stable=True)]
    return torch.cat([text, pattern.text_len + image])


def _keys_in_reach(pattern: Pattern, queries: Tensor) -> Tensor:
    """Sequence positions (S,) of the text, and of image keys among which are all that the queries see."""
    image_queries = queries[queries >= pattern.text_len] - pattern.text_len
    text = torch.arange(pattern.text_len, dtype=torch.int32)
    if len(image_queries) == 0:
        return text
    if pattern.kind == "column":
        rows = torch.arange(pattern.height, dtype=torch.int32)
        image = (rows[:, None] * pattern.width + (image_queries % pattern.width).unique()).flatten()
    else:
        first = 0 if pattern.reach is None else max(0, int(image_queries.min()) - pattern.reach)
        image = torch.arange(first, int(image_queries.max()) + 1, dtype=torch.int32)
    return torch.cat([text, pattern.text_len + image])


def fewest_blocks(pattern: Pattern) -> int:
    """Blocks of 64x64 in the matrix products of one head, in the best order."""
    return min(count(pattern, order).gathered for order in ORDERS[pattern.kind])


def matrix_flops(pairs: int, head_dim: int, pass_: str) -> int:
    return {"fwd": 4, "bwd": 10, "fwd+bwd": 14}[pass_] * head_dim * pairs


def moved_bytes(shape: tuple[int, int, int, int], itemsize: int, pass_: str) -> int:
    """Of tensors (B, H, T, D) and the log-sum-exps (B, H, T)."""
    batch, heads, seq_len, head_dim = shape
    tensors = {"fwd": 4, "bwd": 8, "fwd+bwd": 12}[pass_]
    lse = {"fwd": 1, "bwd": 1, "fwd+bwd": 2}[pass_]
    return batch * heads * seq_len * (tensors * head_dim * itemsize + 4 * lse)


def roof_ms(pattern: Pattern, shape: tuple[int, int, int, int], itemsize: int, pass_: str, ceilings: Ceilings) -> float:
    """The least time of a pass; forward with backward takes the least time of each."""
    if pass_ == "fwd+bwd":
        return sum(roof_ms(pattern, shape, itemsize, part, ceilings) for part in ("fwd", "bwd"))
    block_pairs = shape[0] * shape[1] * fewest_blocks(pattern) * BLOCK**2
    return ceilings.ms(Work(matrix_flops(block_pairs, shape[3], pass_), moved_bytes(shape, itemsize, pass_)))
