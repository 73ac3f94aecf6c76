"""The oracle by blocks equals the oracle, and results that are a little wrong do not pass."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gate import Errors, Inputs, Results, check, errors, exact_results, first_and_last_head, results_of
from kernels.patterns import KINDS, Pattern, dense_mask
from kernels.reference import attention_reference

PATTERN = Pattern("row", 20, 9, 12)
SHAPE = (2, 3, PATTERN.seq_len, 16)


def masked(mask):
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1024, 50, 1])
def test_the_oracle_by_blocks_equals_the_reference(kind, block):
    pattern = Pattern(kind, 20, 9, 12, 5)
    inputs = Inputs.random(SHAPE, torch.float64, "cpu")
    expected = results_of(lambda q, k, v: attention_reference(q, k, v, pattern), inputs)
    for x, y in zip(exact_results(inputs, pattern, block), expected, strict=True):
        torch.testing.assert_close(x, first_and_last_head(y))


def test_the_heads_that_are_checked():
    x = torch.arange(6.0).view(2, 3, 1, 1)
    assert first_and_last_head(x).flatten().tolist() == [0, 5]
    assert first_and_last_head(x[:1, :1]).flatten().tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_right_results_pass_in_every_dtype(dtype):
    inputs = Inputs.random(SHAPE, dtype, "cpu")
    found = errors(results_of(masked(dense_mask(PATTERN)), inputs), exact_results(inputs, PATTERN))
    check(found, dtype, PATTERN)
    assert 0 < found.output < 1e-2
    assert 0 < found.gradients < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [slice(20, None), slice(64, 76)])
def test_a_span_that_misses_its_last_key_does_not_pass(dtype, rows):
    """Everywhere, or in one row of the grid only."""
    mask = dense_mask(PATTERN)
    offsets = torch.arange(PATTERN.seq_len)[:, None] - torch.arange(PATTERN.seq_len)[None, :]
    mask[rows] &= offsets[rows] != PATTERN.width
    inputs = Inputs.random(SHAPE, dtype, "cpu")
    found = errors(results_of(masked(mask), inputs), exact_results(inputs, PATTERN))
    with pytest.raises(
        ValueError, match=r"wrong under Pattern.*: error .* of the output, .* of the gradients, allowed .*; not timed"
    ):
        check(found, dtype, PATTERN)


@pytest.mark.parametrize("name", Results._fields)
def test_each_result_is_checked(name):
    inputs = Inputs.random(SHAPE, torch.float32, "cpu")
    right = results_of(masked(dense_mask(PATTERN)), inputs)
    exact = exact_results(inputs, PATTERN)
    for wrong in (getattr(right, name).clone().index_fill_(2, torch.tensor(40), value) for value in (0, math.nan)):
        with pytest.raises(ValueError, match="wrong"):
            check(errors(right._replace(**{name: wrong}), exact), torch.float32, PATTERN)


@pytest.mark.parametrize("found", [Errors(math.nan, 0), Errors(0, math.nan), Errors(2e-5, 0), Errors(0, 2e-5)])
def test_errors_beyond_the_dtypes_are_refused(found):
    with pytest.raises(ValueError, match="allowed 1e-05"):
        check(found, torch.float32, PATTERN)
