"""VQGANs in the format of taming-transformers, with weights of our own, against their formulas."""

import argparse
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model_files import mismatches
from tests.vqvae.foreign.formats import (
    TAMING,
    TINY,
    Sizes,
    meta_weights,
    random_images,
    random_weights,
    run,
    vqgan_shapes,
)
from vqvae.foreign import taming
from vqvae.foreign.weights import Weights
from vqvae.model import DiscreteVAE
from vqvae.pretrained import load

BOTH = pytest.mark.parametrize("gumbel", [False, True], ids=["vq", "gumbel"])


class ImageLogger:
    """A callback of theirs, which checkpoints of Lightning then kept as it was."""

    def __init__(self) -> None:
        self.batch_freq, self.best = 750, torch.tensor(0.25)


@pytest.fixture
def weights():
    def make(gumbel: bool, sizes: Sizes = TINY) -> dict[str, torch.Tensor]:
        return random_weights(vqgan_shapes(TAMING, sizes, gumbel))

    return make


@pytest.fixture
def save(save_with_classes, tmp_path):
    """As Lightning wrote checkpoints: among other things, and with classes of the run and of Lightning."""

    def write(tensors, path: Path | None = None, zipped: bool = True) -> Path:
        loss = {"loss.discriminator.main.0.weight": torch.ones(2, 2), "loss.logvar": torch.zeros(())}
        checkpoint = {
            "epoch": 3,
            "global_step": 1000,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {ImageLogger: {"logger": ImageLogger(), "dirpath": Path("logs"), "kept": {"a", "b"}}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 4.5e-6}]}],
            "lr_schedulers": [],
            "state_dict": tensors | loss,
            "hparams": argparse.Namespace(seed=23, device=torch.device("cpu"), dtype=torch.float32),
        }
        classes = {"main.ImageLogger": ImageLogger}
        return save_with_classes(checkpoint, path or tmp_path / "last.ckpt", classes, zipped)

    return write


@BOTH
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_same_codes_and_pictures(weights, save, gumbel, zipped):
    tensors = weights(gumbel)
    model = load([save(tensors, zipped=zipped)]).model
    images = random_images(16)

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    z = conv("quant_conv", run("encoder", TAMING, TINY, tensors, 2 * images - 1))
    if gumbel:
        z = conv("quantize.proj", z)
        indices, codebook = z.argmax(dim=1), tensors["quantize.embed.weight"]
    else:
        codebook = tensors["quantize.embedding.weight"]
        indices = (z[:, None] - codebook[:, :, None, None]).square().sum(dim=2).argmin(dim=1)
    torch.testing.assert_close(model.encode_vectors(images), z, atol=1e-5, rtol=1e-5)
    assert len(indices.unique()) > 3
    assert torch.equal(model.encode(images), indices)
    maps = run("decoder", TAMING, TINY, tensors, conv("post_quant_conv", codebook[indices].permute(0, 3, 1, 2)))
    torch.testing.assert_close(model(images).maps, maps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(indices), ((maps + 1) / 2).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_sizes_are_read_off_the_weights(weights, save):
    config = load([save(weights(gumbel=True))]).model.config
    assert (config.network, config.pixels, config.quantizer) == ("conv", "signed", "gumbel")
    assert (config.n_hid, config.width_multipliers, config.n_blk_per_group) == (32, (1, 2, 2), 2)
    assert (config.n_init, config.codebook_size, config.downsample_factor, config.image_size) == (12, 20, 4, 256)


def test_options_of_a_codebook(weights, save):
    config = load([save(weights(gumbel=False))]).model.config
    expected = {"codebook_dim": 12, "ema": False, "normalise": False, "standardise": False}
    assert (config.quantizer, config.quantizer_options) == ("vq", expected)


def test_training_goes_on_from_the_codebook(weights, save):
    tensors = weights(gumbel=False)
    model = load([save(tensors)]).model.train()
    model(random_images(16))
    assert torch.equal(model.quantizer.embedding, tensors["quantize.embedding.weight"])


@pytest.mark.parametrize(
    ("multipliers", "gumbel", "codebook_size"),
    [((1, 1, 2, 4), True, 8192), ((1, 1, 2, 2, 4), False, 1024), ((1, 1, 2, 2, 4), False, 16384)],
    ids=["gumbel f8 8192", "f16 1024", "f16 16384"],
)
def test_released_sizes(multipliers, gumbel, codebook_size):
    sizes = Sizes(128, multipliers, 2, 256, codebook_size, 256)
    tensors = meta_weights(vqgan_shapes(TAMING, sizes, gumbel))
    converted = taming.convert([Weights(Path("last.ckpt"), tensors, {})], 256)
    assert converted.config.grid_size == ((32, 32) if gumbel else (16, 16))
    with torch.device("meta"):
        assert mismatches(converted.tensors, DiscreteVAE(converted.config).state_dict()) == []


def test_linear_maps_are_composed_in_float64(weights):
    tensors = weights(gumbel=True)
    converted = taming.convert([Weights(Path("last.ckpt"), tensors, {})], 256).tensors
    proj, conv = (tensors[f"{name}.weight"][:, :, 0, 0].double() for name in ("quantize.proj", "quant_conv"))
    assert torch.equal(converted["encoder.blocks.output.weight"][:, :, 0, 0], (proj @ conv).float())


YAML = "model: {target: taming.models.vqgan.VQModel, params: {embed_dim: 12, ddconfig: {resolution: RES, ch: 32}}}"


def test_the_yaml_has_the_resolution(weights, save, tmp_path):
    checkpoint, config = save(weights(gumbel=True)), tmp_path / "model.yaml"
    config.write_text(YAML.replace("RES", "64"))
    assert load([checkpoint, config]).model.config.image_size == 64
    assert load([config, checkpoint], image_size=32).model.config.image_size == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {params: {}}", r"model.yaml has no model.params.ddconfig.resolution"),
        ("just words", r"model.yaml has no model.params.ddconfig.resolution"),
        ("{", r"model.yaml has no model.params.ddconfig.resolution"),
        ("!!python/object/apply:os.system ['true']", r"model.yaml has no model.params.ddconfig.resolution"),
        (YAML.replace("RES", "large"), "model.yaml: resolution is 'large', expected a number of pixels"),
        (YAML.replace("RES", "30"), "image_size is 30, expected a multiple of the downsample factor 4"),
    ],
)
def test_a_wrong_yaml_is_refused(weights, save, tmp_path, text, message):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load([save(weights(gumbel=True)), tmp_path / "model.yaml"])


def attention_elsewhere(tensors):
    """Of the level above the lowest, as for attn_resolutions of two sizes."""
    more = {name.replace("down.2.attn", "down.1.attn"): t for name, t in tensors.items() if "down.2.attn" in name}
    return tensors | more


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attention_elsewhere, r"attention at the levels \[1, 2\] of 0 to 2, expected at the last"),
        (lambda t: {k: v for k, v in t.items() if "down.2.attn" not in k}, r"attention at the levels \[\] of 0 to 2"),
        (
            without("encoder.down.1.block.0.conv2.bias"),
            r"encoder.blocks.group_2.block_1.res_path.conv_2.bias is missing",
        ),
        (without("quant_conv.weight"), "it lacks quant_conv.weight"),
        (without("encoder.conv_in.weight"), "it lacks encoder.conv_in.weight"),
        (
            lambda t: t | {"encoder.up.0.block.0.conv1.bias": t["quant_conv.bias"]},
            "encoder.up.0.block.0.conv1.bias is unkn",
        ),
        (lambda t: t | {"quantize.used": t["quant_conv.bias"]}, "quantize.used is unknown"),
        (
            lambda t: t | {"quantize.proj.weight": torch.zeros(20, 13, 1, 1)},
            r"quantize.proj and quant_conv do not follow",
        ),
        (
            lambda t: t | {"encoder.conv_in.weight": torch.zeros(48, 3, 3, 3)},
            r"widths are \[32, 64, 64\], expected mult",
        ),
    ],
)
def test_another_network_is_refused(weights, save, change, message):
    with pytest.raises(ValueError, match=f"last.ckpt.*{message}"):
        load([save(change(weights(gumbel=True)))])


def test_a_bare_state_dict_of_halves(weights, tmp_path):
    tensors = {name: tensor.half() for name, tensor in weights(gumbel=True).items()}
    torch.save(tensors, tmp_path / "weights.pt")
    model = load([tmp_path / "weights.pt"]).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    expected = tensors["encoder.conv_in.weight"].float()
    assert torch.equal(model.state_dict()["encoder.blocks.input.weight"], expected)
