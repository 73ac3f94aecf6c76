"""One decoding step by Triton kernels: a few queries against a cache, of which only what they see is read.

A step has little to compute and much to read, so what counts is how many bytes are fetched and by how many programs at
once. Each program takes one head and one slice of the list of keys that these queries may see; where a slice is not the
whole, the partial outputs are weighted by their log-sum-exp in a second kernel (flash-decoding,
https://pytorch.org/blog/flash-decoding/; the merge as in https://arxiv.org/abs/2205.14135, section 3.1). The list is
never written down; its entries are computed from their number, in blocks of one kind, each read from one tensor:

    text     the text keys in use, which the samples of a text share
    local    the filled slots of the ring, or a single query's column, taken by strides

The pattern's rule is asked about every local entry before it is fetched, so that a conv layer reads its window out of
the ring, and what is not seen may hold anything. Into how many slices a list is cut depends on the pattern and the
ring's length alone: a step that was captured once is replayed at every position, and its results do not depend on the
batch.

One query is multiplied and summed up in float32; a few are padded to 16 rows for the matrix units. There are no
gradients. It is an operator of torch.library, `imagewords::attention_step`.

Legend: N new queries.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.cache_layout import KeysValues
from kernels.decode_launch import run_step
from kernels.inputs import check_cache
from kernels.jit import check_device
from kernels.limits import MAX_NEW, check_limits, needs_gradients, refuse_forward_mode
from kernels.patterns import PATTERN_SCHEMA, Pattern


@torch.library.custom_op(
    "imagewords::attention_step",
    mutates_args=(),
    schema="(Tensor q, Tensor text_k, Tensor text_v, Tensor image_k, Tensor image_v, Tensor index, "
    f"Tensor? prefix_lengths, float scale, {PATTERN_SCHEMA}) -> Tensor",
)
def _attention_step(
    q: Tensor,
    text_k: Tensor,
    text_v: Tensor,
    image_k: Tensor,
    image_v: Tensor,
    index: Tensor,
    prefix_lengths: Tensor | None,
    scale: float,
    *settings: Any,
) -> Tensor:
    check_limits(q)
    check_device(q)
    if q.shape[2] > MAX_NEW:
        raise ValueError(f"a step by impl='triton' takes at most {MAX_NEW} queries, not {q.shape[2]}")
    text, image, pattern = KeysValues(text_k, text_v), KeysValues(image_k, image_v), Pattern(*settings)
    check_cache(q, text, image, pattern)
    return run_step(q, text, image, index, prefix_lengths, scale, pattern)


@_attention_step.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def decode_step(
    q: Tensor,
    text: KeysValues,
    image: KeysValues,
    pattern: Pattern,
    index: int | Tensor,
    *,
    scale: float,
    prefix_lengths: Tensor | None,
) -> Tensor:
    """`attention_step` by these kernels, of inputs that it has checked.

    Raises:
        ValueError: a dtype, head dim, number of queries or device that they do not take, or gradients are needed.
    """
    check_limits(q)
    refuse_forward_mode(q, *text, *image)
    if needs_gradients(q, *text, *image):
        raise ValueError("a step by impl='triton' has no gradients: use torch.no_grad() or impl='structured'")
    if isinstance(index, int):
        index = torch.full((), index, dtype=torch.int32, device=q.device)
    return _attention_step(q, *text, *image, index, prefix_lengths, scale, *pattern.settings)
