"""What tests of the Triton attention kernels share: inputs, and blocks so small that short sequences take several."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from unittest import mock

import pytest
import torch
from torch import Tensor

from kernels import flash_launch
from kernels.launch import Launch
from kernels.patterns import Pattern
from tests.kernels.oracle import DEVICE, packed, unpack

SMALL = Launch(16, 16, 4, 1)
TOY = Pattern("row", 5, 3, 4)


@pytest.fixture
def small_blocks() -> Iterator[None]:
    with blocks(SMALL.block_m, SMALL.block_n):
        yield


def blocks(block_m: int, block_n: int) -> AbstractContextManager:
    return mock.patch.object(flash_launch, "launch_parameters", return_value=Launch(block_m, block_n, 4, 1))


def inputs(
    pattern: Pattern, batch: int = 1, heads: int = 2, head_dim: int = 16, seed: int = 0, dtype=torch.float32
) -> Tensor:
    return packed(pattern, batch, heads, head_dim, seed).to(DEVICE, dtype)


def toy(batch: int = 1) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in unpack(inputs(TOY, batch)))
