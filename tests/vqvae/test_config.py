import pytest

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
        ("image_size", 0, "image_size is 0, expected at least 1"),
        ("image_size", 100, "image_size is 100, expected a multiple of the downsample factor 8"),
        ("n_hid", 0, "n_hid is 0, expected at least 1"),
        ("n_hid", 6, "n_hid is 6, expected a multiple of 4"),
        ("n_init", -1, "n_init is -1, expected at least 1"),
        ("n_groups", 0, "n_groups is 0, expected at least 1"),
        ("n_blk_per_group", 0, "n_blk_per_group is 0, expected at least 1"),
        ("codebook_size", 1, "codebook_size is 1, expected at least 2"),
    ],
)
def test_impossible_sizes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        DiscreteVAEConfig(**{field: value})
