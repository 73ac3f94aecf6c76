"""The decoder against the released one: names, shapes, counts (the keys there end in w and b)."""

import torch
import torch.nn.functional as F

from vqvae.blocks import Block
from vqvae.config import DiscreteVAEConfig
from vqvae.decoder import KERNELS, Decoder


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Key -> shape of the released decoder's state dict, written down from its description."""
    widths = [128, 2048, 1024, 512, 256]
    shapes = {"blocks.input.w": (128, 8192, 1, 1), "blocks.output.conv.w": (6, 256, 1, 1)}
    for group in range(1, 5):
        for block in (1, 2):
            n_in, n_out = widths[group - 1] if block == 1 else widths[group], widths[group]
            name, n_hid = f"blocks.group_{group}.block_{block}", n_out // 4
            shapes[f"{name}.res_path.conv_1.w"] = (n_hid, n_in, 1, 1)
            shapes[f"{name}.res_path.conv_2.w"] = (n_hid, n_hid, 3, 3)
            shapes[f"{name}.res_path.conv_3.w"] = (n_hid, n_hid, 3, 3)
            shapes[f"{name}.res_path.conv_4.w"] = (n_out, n_hid, 3, 3)
            if n_in != n_out:
                shapes[f"{name}.id_path.w"] = (n_out, n_in, 1, 1)
    return shapes | {key[:-1] + "b": shape[:1] for key, shape in shapes.items()}


def test_the_papers_sizes_are_the_released_ones():
    with torch.device("meta"):
        decoder = Decoder(DiscreteVAEConfig(), 8192, 6)
        maps = decoder(torch.zeros(1, 8192, 32, 32))
    ours = {key.replace("weight", "w").replace("bias", "b"): tuple(t.shape) for key, t in decoder.state_dict().items()}
    assert ours == released_shapes()
    assert len(ours) == 76
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 43_829_766
    assert maps.shape == (1, 6, 256, 256)


def test_stages_in_order(make_config):
    decoder = Decoder(make_config(n_blk_per_group=2), 32, 6)
    assert list(dict(decoder.blocks.named_children())) == ["input", "group_1", "group_2", "group_3", "output"]
    assert list(dict(decoder.blocks.group_1.named_children())) == ["block_1", "block_2"]
    assert list(dict(decoder.blocks.group_3.named_children())) == ["block_1", "block_2"]


def test_each_group_but_the_first_doubles_the_resolution_before_its_first_block(make_config):
    """In the order of the paper: positions are repeated, then a block of the same weights sees them."""
    decoder = Decoder(make_config(n_groups=3, n_blk_per_group=2), 32, 6)
    z_q = torch.randn(2, 32, 3, 5)
    x = decoder.blocks.input(z_q)
    for group in (decoder.blocks.group_1, decoder.blocks.group_2, decoder.blocks.group_3):
        if group is not decoder.blocks.group_1:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        for block in (group.block_1, group.block_2):
            n_out, n_in = block.res_path.conv_4.out_channels, x.shape[1]
            usual = Block(n_in, n_out, KERNELS, block.post_gain)
            usual.load_state_dict(block.state_dict())
            x = usual(x)
    torch.testing.assert_close(decoder(z_q), decoder.blocks.output.conv(F.relu(x)))


def test_a_weight_column_is_the_embedding_of_a_code(make_config):
    decoder = Decoder(make_config(), 32, 6)
    one_hot = F.one_hot(torch.tensor([[[7, 3]]]), 32).permute(0, 3, 1, 2).float()
    embedded = decoder.blocks.input(one_hot)[0, :, 0].T  # (2, n_init)
    torch.testing.assert_close(embedded, decoder.blocks.input.weight[:, [7, 3], 0, 0].T)


def test_every_residual_path_has_the_gain(make_config):
    decoder = Decoder(make_config(post_gain=0.5), 32, 6)
    gains = [module.post_gain for module in decoder.modules() if hasattr(module, "post_gain")]
    assert gains == [0.5] * 3
