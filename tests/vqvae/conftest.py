"""Models so small that a test costs milliseconds."""

from collections.abc import Callable

import pytest
import torch

from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.quantizers import QUANTIZERS

SIZES = {"image_size": 16, "n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 32}
OPTIONS = {"gumbel": {}, "vq": {"codebook_dim": 4}, "fsq": {"levels": [8, 4]}, "lfq": {}, "bsq": {}, "ibq": {}}
PLAIN = {"codebook_dim": 4, "normalise": False, "standardise": False}
VARIANTS = {kind: (kind, OPTIONS[kind]) for kind in QUANTIZERS} | {
    "vq, plain": ("vq", PLAIN | {"kmeans_steps": 2}),
    "vq, gradient": ("vq", PLAIN | {"ema": False, "normalise": True, "rotate": True}),
}
# At the paper's gain, what an untrained network makes of different pictures is nearly the same.
NETWORKS = {"dalle": {"network": "dalle", "post_gain": 1.0}, "conv": {"network": "conv"}}


@pytest.fixture
def make_config() -> Callable[..., DiscreteVAEConfig]:
    """16x16 pictures, 4x4 grids, 32 codes."""
    return lambda **overrides: DiscreteVAEConfig(**(SIZES | overrides))


@pytest.fixture(params=NETWORKS)
def make_model(request, make_config) -> Callable[..., DiscreteVAE]:
    """With each network in turn."""

    def make(**overrides) -> DiscreteVAE:
        torch.manual_seed(0)
        return DiscreteVAE(make_config(**(NETWORKS[request.param] | overrides))).eval()

    return make


@pytest.fixture(params=VARIANTS)
def quantizer_settings(request) -> dict:
    """The settings of each quantizer in turn."""
    quantizer, options = VARIANTS[request.param]
    return {"quantizer": quantizer, "quantizer_options": options}


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth colours with an edge, (6, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 2, 2, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=False)
    images[:, :, 5:11, 5:11] = torch.rand(6, 3, 1, 1, generator=generator)
    return images
