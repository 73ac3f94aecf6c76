"""The encoder against the published sizes: f8 and f16 with a bottleneck of 256 channels."""

import pytest
import torch
import torch.nn.functional as F

from vqvae.config import DiscreteVAEConfig
from vqvae.conv_encoder import ConvEncoder

F8 = {"network": "conv", "n_hid": 128, "n_init": 256, "width_multipliers": (1, 2, 2, 4)}
F16 = F8 | {"n_groups": 5, "width_multipliers": (1, 1, 2, 2, 4)}


def parameters_of_blocks(n_in: int, widths: list[int], blocks: int, attention: list[bool]) -> int:
    """Of residual blocks and attention, group after group, counted by hand."""
    count = 0
    for width, attends in zip(widths, attention, strict=True):
        for _ in range(blocks):
            count += 2 * n_in + 9 * n_in * width + width + 2 * width + 9 * width**2 + width
            count += n_in * width + width if n_in != width else 0
            count += 2 * width + 4 * (width**2 + width) if attends else 0
            n_in = width
    return count


@pytest.mark.parametrize(
    ("settings", "widths", "side"),
    [(F8, [128, 256, 256, 512], 32), (F16, [128, 128, 256, 256, 512], 16), (F8 | {"n_groups": 3}, None, 64)],
)
def test_published_sizes(settings, widths, side):
    if widths is None:
        settings, widths = settings | {"width_multipliers": None}, [128, 256, 512]
    with torch.device("meta"):
        encoder = ConvEncoder(DiscreteVAEConfig(**settings), 8)
        z_e = encoder(torch.zeros(1, 3, 256, 256))
    assert z_e.shape == (1, 8, side, side)
    expected = 27 * 128 + 128  # input
    expected += parameters_of_blocks(128, widths, 2, [False] * (len(widths) - 1) + [True])
    expected += sum(9 * width**2 + width for width in widths[:-1])  # downsampling
    expected += parameters_of_blocks(512, [512], 1, [True]) + parameters_of_blocks(512, [512], 1, [False])  # middle
    expected += 2 * 512 + 9 * 512 * 256 + 256 + 256 * 8 + 8  # norm and the last two convolutions
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected


def test_stages_in_order(make_config):
    encoder = ConvEncoder(make_config(network="conv", n_blk_per_group=2), 32)
    stages = ["input", "group_1", "group_2", "group_3", "middle", "narrow", "output"]
    assert list(dict(encoder.blocks.named_children())) == stages
    assert list(dict(encoder.blocks.group_1.named_children())) == ["block_1", "block_2", "downsample"]
    lowest = ["block_1", "attention_1", "block_2", "attention_2"]
    assert list(dict(encoder.blocks.group_3.named_children())) == lowest
    assert list(dict(encoder.blocks.middle.named_children())) == ["block_1", "attention", "block_2"]


def test_ends_in_norm_swish_3x3_1x1(make_config):
    encoder = ConvEncoder(make_config(network="conv", n_groups=2, n_init=12), 32)
    x = torch.randn(2, 3, 16, 12)
    deep = encoder.blocks.middle(encoder.blocks.group_2(encoder.blocks.group_1(encoder.blocks.input(x))))
    narrow = encoder.blocks.narrow.conv(F.silu(encoder.blocks.narrow.norm(deep)))
    assert narrow.shape == (2, 12, 8, 6)
    torch.testing.assert_close(encoder.features(x), narrow)
    torch.testing.assert_close(encoder(x), F.conv2d(narrow, encoder.output_conv.weight, encoder.output_conv.bias))
