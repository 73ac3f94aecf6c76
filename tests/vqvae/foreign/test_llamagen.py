"""Tokenizers in LlamaGen's format, with weights of our own, against their formulas."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model_files import mismatches
from tests.vqvae.foreign.formats import LLAMAGEN, Sizes, meta_weights, random_images, random_weights, run, vqgan_shapes
from vqvae.foreign import llamagen
from vqvae.foreign.weights import Weights
from vqvae.model import DiscreteVAE
from vqvae.pretrained import load

SIZES = Sizes(ch=32, multipliers=(1, 2, 3), blocks=1, z_channels=12, codebook_size=20, codebook_dim=4)


@pytest.fixture
def tensors():
    return random_weights(vqgan_shapes(LLAMAGEN, SIZES))


@pytest.fixture
def save(tmp_path):
    def write(**checkpoint) -> Path:
        torch.save(checkpoint, tmp_path / "vq_ds4.pt")
        return tmp_path / "vq_ds4.pt"

    return write


def test_same_codes_and_pictures(tensors, save):
    path = save(model=tensors | {"quantize.codebook_used": torch.zeros(65536)}, steps=7)
    model = load([path]).model
    images = random_images(16)

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    z = conv("quant_conv", run("encoder", LLAMAGEN, SIZES, tensors, 2 * images - 1))
    torch.testing.assert_close(model.encode_vectors(images), z, atol=1e-5, rtol=1e-5)
    codebook = F.normalize(tensors["quantize.embedding.weight"], dim=1)
    distances = (F.normalize(z, dim=1)[:, None] - codebook[:, :, None, None]).square().sum(dim=2)
    indices = distances.argmin(dim=1)
    assert len(indices.unique()) > 3
    assert torch.equal(model.encode(images), indices)
    maps = run("decoder", LLAMAGEN, SIZES, tensors, conv("post_quant_conv", codebook[indices].permute(0, 3, 1, 2)))
    torch.testing.assert_close(model(images).maps, maps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(indices), ((maps + 1) / 2).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_sizes_are_read_off_the_weights(tensors, save):
    config = load([save(model=tensors)]).model.config
    assert (config.network, config.pixels, config.quantizer) == ("conv", "signed", "vq")
    assert (config.n_hid, config.width_multipliers, config.n_blk_per_group) == (32, (1, 2, 3), 1)
    assert (config.n_init, config.codebook_size, config.downsample_factor, config.image_size) == (12, 20, 4, 256)
    assert config.quantizer_options == {"codebook_dim": 4, "ema": False, "normalise": True, "standardise": False}


@pytest.mark.parametrize(
    ("multipliers", "side", "millions"), [((1, 2, 2, 4), 32, 70), ((1, 1, 2, 2, 4), 16, 72)], ids=["ds8", "ds16"]
)
def test_released_sizes(multipliers, side, millions):
    """Their published tables have 70M and 72M parameters."""
    tensors = meta_weights(vqgan_shapes(LLAMAGEN, Sizes(128, multipliers, 2, 256, 16384, 8)))
    assert round(sum(tensor.numel() for tensor in tensors.values()) / 1e6) == millions
    converted = llamagen.convert([Weights(Path("vq.pt"), tensors, {})], 256)
    assert converted.config.grid_size == (side, side)
    with torch.device("meta"):
        assert mismatches(converted.tensors, DiscreteVAE(converted.config).state_dict()) == []


def test_averaged_weights_are_the_ones_to_use(tensors, save):
    averaged = {name: tensor + 1 for name, tensor in tensors.items()}
    loaded = load([save(model=tensors, ema=averaged, optimizer={"state": {}})]).model.state_dict()
    assert torch.equal(loaded["quantizer.embedding"], averaged["quantize.embedding.weight"])


def test_a_layer_too_many_is_named(tensors, save):
    tensors["decoder.conv_blocks.0.res.2.conv1.bias"] = torch.zeros(96)
    with pytest.raises(
        ValueError, match=r"vq_ds4.pt is .*decoder.blocks.group_1.block_3.res_path.conv_1.bias is unknown"
    ):
        load([save(model=tensors)])
