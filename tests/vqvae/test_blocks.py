import math

import pytest
import torch
import torch.nn.functional as F

from vqvae.blocks import Block, conv


@pytest.mark.parametrize(("n_in", "n_out", "kernel"), [(3, 64, 7), (64, 128, 3), (256, 128, 1)])
def test_starting_values(n_in, n_out, kernel):
    torch.manual_seed(0)
    layer = conv(n_in, n_out, kernel)
    std = 1 / math.sqrt(n_in * kernel**2)
    count = layer.weight.numel()
    assert layer.weight.shape == (n_out, n_in, kernel, kernel)
    assert layer.weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * count))
    assert abs(layer.weight.mean().item()) < 4 * std / math.sqrt(count)
    outside = (layer.weight.abs() > 2 * std).float().mean().item()  # 0.0455 of a normal, none of a uniform
    assert outside == pytest.approx(0.0455, abs=0.01)
    assert not layer.bias.any()


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_convolutions_keep_the_size(kernel):
    assert conv(2, 3, kernel)(torch.zeros(1, 2, 5, 9)).shape == (1, 3, 5, 9)


def randomise_biases(block: Block) -> Block:
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return block


@pytest.mark.parametrize("kernels", [(3, 3, 3, 1), (1, 3, 3, 3)])
@pytest.mark.parametrize(("n_in", "n_out"), [(8, 8), (8, 16)])
def test_block_written_out(kernels, n_in, n_out):
    torch.manual_seed(0)
    block = randomise_biases(Block(n_in, n_out, kernels, post_gain=0.25))
    weights = dict(block.named_parameters())
    x = torch.randn(2, n_in, 5, 6)
    residual, widths = x, [n_out // 4] * 3 + [n_out]
    for i, (kernel, width) in enumerate(zip(kernels, widths, strict=True), start=1):
        weight = weights[f"res_path.conv_{i}.weight"]
        assert weight.shape[0] == width
        assert weight.shape[2:] == (kernel, kernel)
        residual = F.conv2d(F.relu(residual), weight, weights[f"res_path.conv_{i}.bias"], padding=kernel // 2)
    identity = x if n_in == n_out else F.conv2d(x, weights["id_path.weight"], weights["id_path.bias"])
    torch.testing.assert_close(block(x), identity + 0.25 * residual)


def test_identity_path_has_weights_only_where_the_width_changes():
    same, wider = Block(8, 8, (3, 3, 3, 1), 1.0), Block(8, 16, (3, 3, 3, 1), 1.0)
    assert len(list(same.parameters())) == 8
    assert len(list(wider.parameters())) == 10
    assert wider.id_path.weight.shape == (16, 8, 1, 1)


def test_upsampling_is_that_of_the_input():
    torch.manual_seed(0)
    usual, upsampling = (randomise_biases(Block(8, 16, (1, 3, 3, 3), 0.25, upsample=u)) for u in (False, True))
    upsampling.load_state_dict(usual.state_dict())
    x = torch.randn(2, 8, 5, 6)
    fine = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(upsampling(x), usual(fine))


@pytest.mark.parametrize("widths", [(8, 8), (8, 16)])
def test_the_input_stays_as_it_was_also_without_gradients(widths):
    torch.manual_seed(0)
    block, x = Block(*widths, (3, 3, 3, 1), 0.25), torch.randn(2, 8, 5, 6)
    before, expected = x.clone(), block(x)
    with torch.no_grad():
        found = block(x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(x, before)


def test_only_a_1x1_convolution_may_come_before_the_upsampling():
    with pytest.raises(ValueError, match="the first kernel is 3, expected 1"):
        Block(8, 8, (3, 3, 3, 1), 0.25, upsample=True)
