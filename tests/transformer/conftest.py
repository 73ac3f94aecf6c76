"""Priors small enough that a test costs milliseconds, with weights large enough that every mask and gain shows."""

from collections.abc import Callable

import pytest
import torch

from transformer.config import PriorConfig
from transformer.model import Prior

SIZES = {
    "preset": "tiny",
    "text_len": 6,
    "grid_size": (4, 3),
    "codebook_size": 13,
    "text_vocab_size": 11,
    "n_layer": 6,
    "n_head": 2,
    "n_embd": 16,
    "conv_kernel": 3,
}


@pytest.fixture
def make_config() -> Callable[..., PriorConfig]:
    return lambda **overrides: PriorConfig(**(SIZES | overrides))


@pytest.fixture
def make_prior(make_config) -> Callable[..., Prior]:
    def make(**overrides) -> Prior:
        torch.manual_seed(0)
        prior = Prior(make_config(**overrides)).eval()
        # The starting values of 0.02 would hide what a layer does behind the residual stream.
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return prior

    return make


@pytest.fixture
def make_batch() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Captions of 5, 3, 0, 1, ... tokens at `SIZES`, and pictures."""

    def make(batch_size: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        text_tokens = torch.randint(0, 11, (batch_size, 5), generator=generator)
        for row, length in enumerate([5, 3, 0, 1, 4][:batch_size]):
            text_tokens[row, length:] = -1
        return text_tokens, torch.randint(0, 13, (batch_size, 4, 3), generator=generator)

    return make
