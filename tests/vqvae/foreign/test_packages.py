"""Our conversions against the authors' own modules, where their packages are installed.

    pip install --no-deps dall-e taming-transformers-rom1504

They need neither their dependencies nor ours to be changed: what is compared imports torch, numpy, einops and attrs.
"""

import importlib
import sys
from types import ModuleType

import pytest
import torch
import torch.nn as nn

from tests.vqvae.foreign.formats import TAMING, Sizes, random_images, vqgan_shapes
from vqvae.pretrained import load

SIZES = Sizes(ch=32, multipliers=(1, 1, 2), blocks=2, z_channels=16, codebook_size=40, codebook_dim=16)


def module(name: str) -> ModuleType:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{package} is not installed: {error}")


@pytest.fixture
def dall_e(monkeypatch):
    if "requests" not in sys.modules:  # imported by the package to download, which is not done here
        monkeypatch.setitem(sys.modules, "requests", ModuleType("requests"))
    return module("dall_e")


def shaken(model: nn.Module, scale: float) -> nn.Module:
    """Starting values alone leave biases, norms and codes out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model.eval()


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_openais_modules(dall_e, tmp_path):
    sizes = {"n_hid": 64, "n_blk_per_group": 1, "vocab_size": 512}  # the least that they take
    encoder = shaken(dall_e.Encoder(**sizes), 0.02)
    decoder = shaken(dall_e.Decoder(**sizes, n_init=16), 0.02)
    images = random_images(32)
    encoder.blocks.output.conv.b -= encoder(dall_e.map_pixels(images)).mean(dim=(0, 2, 3))  # so that codes differ
    for name, part in {"encoder": encoder, "decoder": decoder}.items():
        torch.save(part, tmp_path / f"{name}.pkl")
    model = load([tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"]).model
    logits = encoder(dall_e.map_pixels(images))
    assert_near(model.encode_vectors(images), logits)
    indices = logits.argmax(dim=1)
    assert len(indices.unique()) > 3
    assert torch.equal(model.encode(images), indices)
    maps = decoder(torch.nn.functional.one_hot(indices, 512).permute(0, 3, 1, 2).float())
    theirs = dall_e.unmap_pixels(torch.sigmoid(maps[:, :3]))
    assert_near(model.decode(indices), theirs)


@pytest.fixture
def vqgan():
    """Their parts in the arrangement of their VQModel and GumbelVQ, which themselves need packages of that time."""
    network, quantize = module("taming.modules.diffusionmodules.model"), module("taming.modules.vqvae.quantize")
    options = {"ch": 32, "out_ch": 3, "ch_mult": SIZES.multipliers, "num_res_blocks": 2, "attn_resolutions": [8]}
    options |= {"in_channels": 3, "resolution": 32, "z_channels": 16, "double_z": False}

    def make(gumbel: bool) -> nn.Module:
        model = nn.Module()
        model.encoder, model.decoder = network.Encoder(**options), network.Decoder(**options)
        model.quant_conv, model.post_quant_conv = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        if gumbel:
            model.quantize = quantize.GumbelQuantize(16, 16, n_embed=40)
        else:
            model.quantize = quantize.VectorQuantizer2(40, 16, beta=0.25, sane_index_shape=True)
            model.quantize.embedding.weight.data.normal_()
        return shaken(model, 0.02)

    return make


@pytest.mark.parametrize("gumbel", [False, True], ids=["vq", "gumbel"])
@torch.no_grad()
def test_tamings_modules(vqgan, tmp_path, gumbel):
    theirs = vqgan(gumbel)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert shapes == vqgan_shapes(TAMING, SIZES, gumbel)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "last.ckpt")
    model = load([tmp_path / "last.ckpt"], image_size=32).model
    images = random_images(32)
    z = theirs.quant_conv(theirs.encoder(2 * images - 1))
    if gumbel:
        logits = theirs.quantize.proj(z)
        assert_near(model.encode_vectors(images), logits)
        indices = logits.argmax(dim=1)
    else:
        assert_near(model.encode_vectors(images), z)
        indices = theirs.quantize(z)[2][2]
    assert len(indices.unique()) > 3
    assert torch.equal(model.encode(images), indices)
    z_q = theirs.quantize.get_codebook_entry(indices.flatten(), (*indices.shape, 16))
    pictures = ((theirs.decoder(theirs.post_quant_conv(z_q)) + 1) / 2).clamp(0, 1)
    assert_near(model.decode(indices), pictures)
