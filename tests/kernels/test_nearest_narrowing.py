"""The pass in bfloat16 that leaves only a few codes: it may decide little, but never wrongly."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import nearest_blocked
from tests.kernels.nearest_oracle import check, normal, small_blocks

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def decided(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N,) bool: the rows that need no full product; their indices are checked to the last bit."""
    with small_blocks("narrowed"):
        indices, undecided = nearest_blocked._argmax_narrowed(x, weight, bias)
    check(indices[~undecided], x[~undecided], weight, bias, ties=True)
    return ~undecided


@pytest.mark.parametrize("dim", [32, 256])
@pytest.mark.parametrize("bias_size", [None, 0, 1, 100])
def test_narrowing_decides_nearly_all(dim, bias_size):
    bias = None if bias_size is None else bias_size * normal(700, seed=2)
    assert decided(normal(300, dim), normal(700, dim, seed=1), bias).float().mean() > 0.99


def test_narrowing_leaves_what_it_cannot_decide():
    x, weight = normal(40, 64), normal(100, 64, seed=1)
    x[:3] = torch.tensor([0.0, torch.nan, torch.inf])[:, None]
    assert decided(x, weight).tolist() == [False] * 3 + [True] * 37
    assert not decided(x, normal(1, 64).expand(100, 64)).any()  # all codes alike
    assert not decided(x, weight * 1e-20).any()
    weight[4, 4] = torch.nan
    assert not decided(x, weight).any()


everything_decided = mock.patch.object(nearest_blocked, "MOST_CANDIDATES", 10_000)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**30), st.integers(-14, 2), st.sampled_from([0.0, 1.0, 1e3]), st.sampled_from([0.0, 1e2, -1e3]))
def test_narrowing_keeps_the_best(seed, spread, bias_size, offset):
    """Codes ever closer to each other, and products ever coarser beside a bias: never decided wrongly."""
    weight = normal(1, 40, seed=seed) + 2.0**spread * normal(90, 40, seed=seed + 1)
    with everything_decided:
        decided(normal(30, 40, seed=seed + 2), weight, offset + bias_size * normal(90, seed=seed + 3))


@pytest.mark.parametrize("offset", [0, 64, 1000, -1000])
def test_narrowing_at_the_edges_of_rounding(offset):
    """x is rounded down where the one code looks, up where the other does; the scores, too, in opposite directions."""
    x = torch.cat([torch.full((32,), 1 + 0.99 * 2.0**-8), torch.full((32,), 1 - 0.99 * 2.0**-9)])[None]
    weight = torch.zeros(2, 64)
    weight[0, :32] = weight[1, 32:] = 1
    steps = torch.arange(-600, 600) / 64
    with everything_decided:
        for step in steps:
            decided(x, weight, torch.stack([step + offset, step + offset + 0.18]))


def test_a_bound_without_the_rounding_of_x_and_of_the_codes_is_caught():
    x, weight = normal(300, 256), normal(1, 256, seed=1) + 0.01 * normal(700, 256, seed=2)

    def threshold(top: Tensor, x: nearest_blocked._Rounded, codes: nearest_blocked._Rounded) -> Tensor:
        return top - 2 * nearest_blocked.BFLOAT16_ROUNDING * top.abs()

    decided(x, weight)
    with (
        mock.patch.object(nearest_blocked, "_threshold", threshold),
        everything_decided,
        pytest.raises(AssertionError),
    ):
        decided(x, weight)


def test_a_bound_with_half_the_rounding_of_products_is_caught():
    with mock.patch.object(nearest_blocked, "BFLOAT16_ROUNDING", 2.0**-9), pytest.raises(AssertionError):
        test_narrowing_at_the_edges_of_rounding(1000)
