"""The encoder against the released one: names, shapes, counts (the keys there end in w and b)."""

import torch
import torch.nn.functional as F

from vqvae.config import DiscreteVAEConfig
from vqvae.encoder import Encoder


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Key -> shape of the released encoder's state dict, written down from its description."""
    widths = [256, 256, 512, 1024, 2048]
    shapes = {"blocks.input.w": (256, 3, 7, 7), "blocks.output.conv.w": (8192, 2048, 1, 1)}
    for group in range(1, 5):
        for block in (1, 2):
            n_in, n_out = widths[group - 1] if block == 1 else widths[group], widths[group]
            name, n_hid = f"blocks.group_{group}.block_{block}", n_out // 4
            shapes[f"{name}.res_path.conv_1.w"] = (n_hid, n_in, 3, 3)
            shapes[f"{name}.res_path.conv_2.w"] = (n_hid, n_hid, 3, 3)
            shapes[f"{name}.res_path.conv_3.w"] = (n_hid, n_hid, 3, 3)
            shapes[f"{name}.res_path.conv_4.w"] = (n_out, n_hid, 1, 1)
            if n_in != n_out:
                shapes[f"{name}.id_path.w"] = (n_out, n_in, 1, 1)
    return shapes | {key[:-1] + "b": shape[:1] for key, shape in shapes.items()}


def test_the_papers_sizes_are_the_released_ones():
    with torch.device("meta"):
        encoder = Encoder(DiscreteVAEConfig(), 8192)
        logits = encoder(torch.zeros(1, 3, 256, 256))
    ours = {key.replace("weight", "w").replace("bias", "b"): tuple(t.shape) for key, t in encoder.state_dict().items()}
    assert ours == released_shapes()
    assert len(ours) == 74
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 53_786_240
    assert logits.shape == (1, 8192, 32, 32)


def test_stages_in_order(make_config):
    encoder = Encoder(make_config(n_blk_per_group=2), 32)
    assert list(dict(encoder.blocks.named_children())) == ["input", "group_1", "group_2", "group_3", "output"]
    assert list(dict(encoder.blocks.group_1.named_children())) == ["block_1", "block_2", "pool"]
    assert list(dict(encoder.blocks.group_3.named_children())) == ["block_1", "block_2"]


def test_pools_by_the_maximum_and_ends_in_relu_and_1x1(make_config):
    encoder = Encoder(make_config(n_groups=2), 32)
    x = torch.randn(2, 3, 16, 16)
    pooled = F.max_pool2d(encoder.blocks.group_1.block_1(encoder.blocks.input(x)), 2)
    last = F.relu(encoder.blocks.group_2.block_1(pooled))
    torch.testing.assert_close(encoder(x), encoder.blocks.output.conv(last))


def test_every_residual_path_has_the_gain(make_config):
    encoder = Encoder(make_config(n_groups=3, n_blk_per_group=2), 32)
    gains = [module.post_gain for module in encoder.modules() if hasattr(module, "post_gain")]
    assert gains == [1 / 36] * 6
