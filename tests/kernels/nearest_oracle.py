"""What the tests of nearest codes share: the ways of finding them in small blocks, and comparison with float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor

from kernels import nearest_blocked, nearest_triton
from kernels.launch import Launch
from kernels.nearest import argmax_linear
from tests.kernels.oracle import DEVICE

WAYS = ("blocked", "narrowed", "triton")
every_way = pytest.mark.parametrize("way", WAYS)
SHAPES = [(1, 1, 1), (5, 7, 3), (1, 300, 16), (33, 40, 32), (37, 65, 70), (20, 130, 8), (3, 17, 257)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
]


@contextmanager
def small_blocks(way: str) -> Iterator[str]:
    """The impl of this name, in blocks so small that small sizes take several, and in several splits."""
    blocked = mock.patch.multiple(
        nearest_blocked,
        BLOCK_ROWS=8,
        BLOCK_CODES=12,
        NARROWING_BLOCK_VALUES=1,
        NARROWING_LEAST_ROWS=8,
        _narrowing_pays=lambda weight: way == "narrowed" and weight.dtype == torch.float32,
    )
    small = (Launch(16, 16, 4, 1), 16)
    triton = mock.patch.multiple(
        nearest_triton,
        launch_parameters=lambda x, weight: small,
        PROGRAMS_A_PROCESSOR=8,
        LEAST_BLOCKS_A_SPLIT=1,
    )
    with blocked, triton:
        yield "triton" if way == "triton" else "blocked"


def found(way: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    device = DEVICE if way == "triton" else "cpu"
    with small_blocks(way) as impl:
        bias = None if bias is None else bias.to(device)
        return argmax_linear(x.to(device), weight.to(device), bias, impl=impl).cpu()


def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(N, K) scores in float64, and (N, 1): how far float32 may be off."""
    x, weight = x.double(), weight.double()
    bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    size = (x.abs() @ weight.abs().t() + bias.abs().where(bias.isfinite(), 0)).amax(dim=1, keepdim=True)
    return x @ weight.t() + bias, 2.0**-21 * size


def check(indices: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, ties: bool = False) -> None:
    """That these are the best codes, to float32's rounding; `ties`: as in float64 to the last bit."""
    assert indices.shape == x.shape[:-1]
    assert indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < len(weight))).all()
    scores, tolerance = exact(x.reshape(-1, x.shape[-1]), weight, bias)
    chosen = scores.gather(1, indices.reshape(-1, 1))
    assert (chosen >= scores.amax(dim=1, keepdim=True) - tolerance).all()
    if ties:
        assert torch.equal(indices.flatten(), scores.max(dim=1).indices)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small integers, whose products are exact in every dtype and tie all the time."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def near_ties() -> tuple[Tensor, Tensor, Tensor]:
    """x, codes in pairs that are 2^-14 apart along x, and the best ones: bfloat16 cannot tell which of a pair it is."""
    x, weight = normal(40, 64), normal(20, 64, seed=1)
    weight = torch.stack([weight, weight * (1 + 2.0**-14)], dim=1).flatten(0, 1)
    return x, weight, exact(x, weight)[0].max(dim=1).indices
