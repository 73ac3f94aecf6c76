"""The pass in bfloat16 that leaves only a few codes: it may decide little, but never wrongly."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from kernels import nearest_blocked
from tests.kernels.nearest_oracle import check, normal, poisoned_memory, small_blocks

__all__ = ["poisoned_memory"]


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**30), st.integers(-14, 2), st.sampled_from([0.0, 1.0, 1e3]))
def test_narrowing_keeps_the_best(seed, spread, bias_size):
    """Codes ever closer to each other: never decided wrongly, however few are decided."""
    weight = normal(1, 40, seed=seed) + 2.0**spread * normal(90, 40, seed=seed + 1)
    decided(normal(30, 40, seed=seed + 2), weight, bias_size * normal(90, seed=seed + 3))


def test_a_bound_that_is_too_tight_is_caught():
    """The planted fault: the bound without the part of the rounding of x and of the codes."""
    x, weight = normal(300, 256), normal(1, 256, seed=1) + 0.01 * normal(700, 256, seed=2)

    def threshold(top: Tensor, x: nearest_blocked._Rounded, codes: nearest_blocked._Rounded) -> Tensor:
        return top - 2.0**-8 * top.abs()

    decided(x, weight)
    with (
        mock.patch.object(nearest_blocked, "_threshold", threshold),
        mock.patch.object(nearest_blocked, "MOST_CANDIDATES", 10_000),
        pytest.raises(AssertionError),
    ):
        decided(x, weight)
