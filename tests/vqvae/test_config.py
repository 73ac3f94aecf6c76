import json
from dataclasses import asdict

import pytest
from jsonargparse import ArgumentParser

from vqvae.config import DiscreteVAEConfig


def test_papers_sizes_are_the_default():
    config = DiscreteVAEConfig()
    assert (config.n_hid, config.n_init, config.n_groups, config.n_blk_per_group) == (256, 128, 4, 2)
    assert (config.image_size, config.codebook_size, config.quantizer) == (256, 8192, "gumbel")
    assert (config.downsample_factor, config.grid_size) == (8, (32, 32))
    assert config.residual_gain == 1 / 64


def test_gain_follows_the_number_of_layers():
    assert DiscreteVAEConfig(n_groups=3, n_blk_per_group=1).residual_gain == pytest.approx(1 / 9)
    assert DiscreteVAEConfig(post_gain=0.5).residual_gain == 0.5


def test_grid_follows_the_groups():
    assert DiscreteVAEConfig(image_size=48, n_groups=3).grid_size == (12, 12)
    assert DiscreteVAEConfig(image_size=7, n_groups=1).grid_size == (7, 7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 0, "image_size is 0, expected a whole number of at least 1"),
        ("image_size", 100, "image_size is 100, expected a multiple of the downsample factor 8"),
        ("n_hid", 0, "n_hid is 0, expected a whole number of at least 1"),
        ("n_hid", 6, "n_hid is 6, expected a multiple of 4"),
        ("n_init", -1, "n_init is -1, expected a whole number of at least 1"),
        ("n_groups", 0, "n_groups is 0, expected a whole number of at least 1"),
        ("n_blk_per_group", 0, "n_blk_per_group is 0, expected a whole number of at least 1"),
        ("codebook_size", 1, "codebook_size is 1, expected a whole number of at least 2"),
        ("image_size", 16.0, "image_size is 16.0, expected a whole number"),
        ("quantizer_options", [1], r"quantizer_options is \[1\], expected names and values"),
        ("post_gain", "x", "post_gain is 'x', expected a number or none"),
        ("network", "unet", "network is 'unet', expected one of dalle, conv"),
        ("width_multipliers", (1, 2, 2, 4), r"width_multipliers is \(1, 2, 2, 4\), but network 'dalle' has none"),
    ],
)
def test_impossible_sizes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        DiscreteVAEConfig(**{field: value})


def test_widths_double_or_are_what_the_multipliers_say():
    assert DiscreteVAEConfig(n_hid=8, n_groups=3).widths == (8, 16, 32)
    assert DiscreteVAEConfig(network="conv", n_hid=8).widths == (8, 16, 32, 64)
    config = DiscreteVAEConfig(network="conv", n_hid=8, width_multipliers=(1, 1, 2, 4))
    assert config.widths == (8, 8, 16, 32)
    assert config.grid_size == (32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width_multipliers": (1, 2)}, r"width_multipliers are 2, \[1, 2\], expected one for each of the 4 groups"),
        ({"width_multipliers": ()}, r"width_multipliers are 0, \[\], expected one for each of the 4 groups"),
        ({"width_multipliers": (1, 0, 2, 4)}, r"width_multipliers are \[1, 0, 2, 4\], expected whole numbers of at"),
        ({"width_multipliers": (1, 1.5, 2, 4)}, r"width_multipliers are \[1, 1.5, 2, 4\], expected whole numbers"),
        ({"post_gain": 1.0}, "post_gain is 1.0, but network 'conv' has none"),
    ],
)
def test_what_conv_does_not_take(settings, message):
    with pytest.raises(ValueError, match=message):
        DiscreteVAEConfig(network="conv", **settings)


def test_settings_survive_json():
    config = DiscreteVAEConfig(network="conv", width_multipliers=(1, 1, 2, 4), quantizer_options={"beta": 0.5})
    again = DiscreteVAEConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert again.width_multipliers == (1, 1, 2, 4)


def test_multipliers_from_the_command_line():
    """As train.py reads and writes them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiscreteVAEConfig, "vae")
    parser.add_argument("--config", action="config")
    parsed = parser.parse_args(["--vae.network=conv", "--vae.width_multipliers", "[1,1,2,4]"])
    assert parser.instantiate(parsed).vae.widths == (256, 256, 512, 1024)
    again = parser.parse_args([f"--config={parser.dump(parsed)}"])
    assert parser.instantiate(again).vae == parser.instantiate(parsed).vae
    assert parser.instantiate(parser.parse_args([])).vae.width_multipliers is None
