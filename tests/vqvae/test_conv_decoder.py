"""The decoder against the published sizes: f8 and f16 with a bottleneck of 256 channels."""

import pytest
import torch
import torch.nn.functional as F

from tests.vqvae.test_conv_encoder import F8, F16, parameters_of_blocks
from vqvae.config import DiscreteVAEConfig
from vqvae.conv_decoder import ConvDecoder
from vqvae.conv_encoder import ConvEncoder


@pytest.mark.parametrize(
    ("settings", "widths", "side"), [(F8, [512, 256, 256, 128], 32), (F16, [512, 256, 256, 128, 128], 16)]
)
def test_published_sizes(settings, widths, side):
    with torch.device("meta"):
        decoder = ConvDecoder(DiscreteVAEConfig(**settings), 8, 3)
        maps = decoder(torch.zeros(1, 8, side, side))
    assert maps.shape == (1, 3, 256, 256)
    expected = 8 * 256 + 256 + 9 * 256 * 512 + 512  # the first two convolutions
    expected += parameters_of_blocks(512, [512], 1, [True]) + parameters_of_blocks(512, [512], 1, [False])  # middle
    expected += parameters_of_blocks(512, widths, 3, [True] + [False] * (len(widths) - 1))
    expected += sum(9 * width**2 + width for width in widths[:-1])  # after upsampling
    expected += 2 * 128 + 9 * 128 * 3 + 3  # output
    assert sum(parameter.numel() for parameter in decoder.parameters()) == expected


def test_stages_in_order(make_config):
    decoder = ConvDecoder(make_config(network="conv", n_blk_per_group=1), 32, 3)
    stages = ["input", "widen", "middle", "group_1", "group_2", "group_3", "output"]
    assert list(dict(decoder.blocks.named_children())) == stages
    lowest = ["block_1", "attention_1", "block_2", "attention_2", "upsample"]
    assert list(dict(decoder.blocks.group_1.named_children())) == lowest
    assert list(dict(decoder.blocks.group_3.named_children())) == ["block_1", "block_2"]


def test_begins_with_1x1_3x3_and_ends_in_norm_swish_3x3(make_config):
    decoder = ConvDecoder(make_config(network="conv", n_groups=2, n_init=12), 32, 3)
    z_q = torch.randn(2, 32, 3, 5)
    begun = decoder.blocks.widen(F.conv2d(z_q, decoder.blocks.input.weight, decoder.blocks.input.bias))
    fine = decoder.blocks.group_2(decoder.blocks.group_1(decoder.blocks.middle(begun)))
    assert fine.shape == (2, 8, 6, 10)
    last = decoder.blocks.output.conv(F.silu(decoder.blocks.output.norm(fine)))
    torch.testing.assert_close(decoder(z_q), last)
    assert last.shape == (2, 3, 6, 10)


def test_a_weight_column_is_the_embedding_of_a_code(make_config):
    decoder = ConvDecoder(make_config(network="conv"), 32, 6)
    one_hot = F.one_hot(torch.tensor([[[7, 3]]]), 32).permute(0, 3, 1, 2).float()
    embedded = decoder.blocks.input(one_hot)[0, :, 0].T - decoder.blocks.input.bias  # (2, n_init)
    torch.testing.assert_close(embedded, decoder.blocks.input.weight[:, [7, 3], 0, 0].T)


def test_learns_one_batch_with_the_encoder(make_config, images):
    torch.manual_seed(0)
    config = make_config(network="conv", n_groups=2)
    encoder, decoder = ConvEncoder(config, 8), ConvDecoder(config, 8, 3)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    errors = []
    for _ in range(40):
        error = (decoder(encoder(images[:2])) - images[:2]).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]
