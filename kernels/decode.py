"""One decoding step by Triton kernels: a few queries against a cache, of which only what they see is read.

A step has little to compute and much to read, so what counts is how many bytes are fetched and by how many programs at
once. Each program takes one head and one slice of the list of keys that these queries may see; where a slice is not the
whole, the partial outputs are weighted by their log-sum-exp in a second kernel (flash-decoding,
https://pytorch.org/blog/flash-decoding/; the merge as in https://arxiv.org/abs/2205.14135, section 3.1). The list is
never written down; its entries are computed from their number:

    text     the text keys in use
    local    the filled slots of the ring, or a single query's column, taken by strides

The pattern's rule is asked about every entry before it is fetched, so that a conv layer reads its window out of the
ring, and what is not seen may hold anything. Into how many slices a list is cut depends on the pattern and the cache's
length alone: a step that was captured once is replayed at every position, and its results do not depend on the batch.

One query is multiplied and summed up in float32; a few are padded to 16 rows for the matrix units. There are no
gradients. It is an operator of torch.library, `imagewords::attention_step`.

Legend: S slots, N new queries.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernels.decode_launch import run_step
from kernels.jit import check_device
from kernels.limits import MAX_NEW, check_alike, check_limits, needs_gradients, refuse_forward_mode
from kernels.patterns import PATTERN_SCHEMA, Pattern


@torch.library.custom_op(
    "imagewords::attention_step",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor position, Tensor? prefix_lengths, float scale, "
    f"{PATTERN_SCHEMA}) -> Tensor",
)
def _attention_step(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, prefix_lengths: Tensor | None, scale: float, *pattern: Any
) -> Tensor:
    check_limits(q)
    check_device(q)
    if q.shape[2] > MAX_NEW:
        raise ValueError(f"a step by impl='triton' takes at most {MAX_NEW} queries, not {q.shape[2]}")
    check_alike(q[:, :, :0], k=k[:, :, :0], v=v[:, :, :0])
    check_alike(k, v=v)
    return run_step(q, k, v, position, prefix_lengths, scale, Pattern(*pattern))


@_attention_step.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    position: int | Tensor,
    *,
    scale: float | None = None,
    prefix_lengths: Tensor | None = None,
) -> Tensor:
    """`attention_step` by these kernels, of inputs that it has checked.

    Raises:
        ValueError: a dtype, head dim, number of queries or device that they do not take, or gradients are needed.
    """
    check_limits(q)
    refuse_forward_mode(q, k, v)
    if needs_gradients(q, k, v):
        raise ValueError("a step by impl='triton' has no gradients: use torch.no_grad() or impl='structured'")
    if isinstance(position, int):
        position = torch.full((), position, dtype=torch.int32, device=q.device)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    return _attention_step(q, k, v, position, prefix_lengths, scale, *pattern.settings)
