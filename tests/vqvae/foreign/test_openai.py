"""The released dVAE in its own format, with weights of our own, against the formulas of the paper."""

import pytest
import torch

from model_files import mismatches
from tests.vqvae.foreign.formats import (
    TINY_DALLE,
    DalleSizes,
    dalle_shapes,
    meta_weights,
    one_hot,
    random_images,
    random_weights,
    run_dalle,
)
from vqvae.foreign import openai
from vqvae.foreign.weights import Weights
from vqvae.model import DiscreteVAE
from vqvae.pretrained import load


@pytest.fixture
def weights():
    return {
        part: random_weights(dalle_shapes(part, TINY_DALLE), seed) for seed, part in enumerate(("encoder", "decoder"))
    }


@pytest.fixture
def files(weights, save_dalle, tmp_path):
    return [save_dalle(part, TINY_DALLE, tensors, tmp_path / f"{part}.pkl") for part, tensors in weights.items()]


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_same_logits_and_pictures(weights, save_dalle, tmp_path, zipped):
    files = [
        save_dalle(part, TINY_DALLE, tensors, tmp_path / f"{part}.pkl", zipped) for part, tensors in weights.items()
    ]
    model = load(files).model
    images = random_images(32)
    logits = run_dalle("encoder", TINY_DALLE, weights["encoder"], 0.8 * images + 0.1)
    torch.testing.assert_close(model.encode_vectors(images), logits, atol=1e-5, rtol=1e-5)
    indices = logits.argmax(dim=1)
    assert len(indices.unique()) > 3
    assert torch.equal(model.encode(images), indices)
    maps = run_dalle("decoder", TINY_DALLE, weights["decoder"], one_hot(indices, TINY_DALLE.codebook_size))
    torch.testing.assert_close(model(images).maps, maps, atol=1e-5, rtol=1e-5)
    recon = ((torch.sigmoid(maps[:, :3]) - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(model.decode(indices), recon, atol=1e-5, rtol=1e-5)


def test_sizes_are_read_off_the_weights(files):
    config = load(files).model.config
    assert (config.n_hid, config.n_init, config.n_groups, config.n_blk_per_group) == (8, 6, 4, 2)
    assert (config.codebook_size, config.quantizer, config.network, config.pixels) == (
        24,
        "gumbel",
        "dalle",
        "logit_laplace",
    )
    assert (config.image_size, config.residual_gain) == (256, 1 / 64)
    assert load(files, image_size=64).model.config.image_size == 64


def test_the_order_of_the_files_does_not_matter(files):
    one, other = load(files).model.state_dict(), load(files[::-1]).model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_released_sizes():
    sizes = DalleSizes(n_hid=256, n_blk_per_group=2, n_init=128, codebook_size=8192)
    parts = {part: meta_weights(dalle_shapes(part, sizes)) for part in ("encoder", "decoder")}
    assert [sum(tensor.numel() for tensor in tensors.values()) for tensors in parts.values()] == [
        53_786_240,
        43_829_766,
    ]
    converted = openai.convert([Weights(part, tensors, {}) for part, tensors in parts.items()], 256)
    with torch.device("meta"):
        assert mismatches(converted.tensors, DiscreteVAE(converted.config).state_dict()) == []


def test_a_gain_of_their_own_is_kept(weights, save_dalle, tmp_path):
    files = [
        save_dalle(part, TINY_DALLE, tensors, tmp_path / f"{part}.pkl", post_gain=0.5)
        for part, tensors in weights.items()
    ]
    assert load(files).model.config.residual_gain == 0.5
    save_dalle("decoder", TINY_DALLE, weights["decoder"], files[1], post_gain=0.25)
    with pytest.raises(ValueError, match=r"encoder.pkl: its blocks have the gains \[0.25, 0.5\], expected one for all"):
        load(files)


def test_one_of_two_is_not_enough(files):
    with pytest.raises(ValueError, match=r"OpenAI's dVAE has its weights in 2 file.s., found 1: .*encoder.pkl"):
        load(files[:1])
    with pytest.raises(ValueError, match=r"is an encoder.pkl and a decoder.pkl, found .*\(decoder\), .*\(decoder\)"):
        load([files[1], files[1]])


def test_a_layer_too_few_is_named(weights, save_dalle, tmp_path):
    three = weights["encoder"] | {"blocks.group_2.block_1.id_path.w": torch.zeros(16, 9, 1, 1)}
    files = [
        save_dalle(part, TINY_DALLE, tensors, tmp_path / f"{part}.pkl")
        for part, tensors in (weights | {"encoder": three}).items()
    ]
    expected = (
        r"other layers than it has here: encoder.blocks.group_2.block_1.id_path.weight is \(16, 9, 1, 1\), expected"
    )
    with pytest.raises(ValueError, match=expected):
        load(files)
