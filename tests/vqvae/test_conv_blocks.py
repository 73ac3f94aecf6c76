import math

import pytest
import torch
import torch.nn.functional as F

from vqvae.conv_blocks import AttentionBlock, ResidualBlock, downsample, group, norm, upsample


def group_norm(x: torch.Tensor, n_groups: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    grouped = x.reshape(len(x), n_groups, -1)
    mean = grouped.mean(dim=-1, keepdim=True)
    variance = (grouped - mean).square().mean(dim=-1, keepdim=True)
    normed = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return normed * weight[:, None, None] + bias[:, None, None]


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """After random values everywhere: norms start at 1 and 0, which hides what they do."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return dict(module.named_parameters())


@pytest.mark.parametrize(
    ("width", "n_groups"), [(32, 32), (128, 32), (512, 32), (64, 32), (4, 1), (8, 2), (24, 6), (48, 12)]
)
def test_groups_of_the_norm(width, n_groups):
    assert norm(width).num_groups == n_groups
    torch.manual_seed(0)
    x = 1e-3 * torch.randn(2, width, 3, 5) + 0.1  # so small that eps is seen
    layer = norm(width)
    weights = weights_of(layer)
    torch.testing.assert_close(layer(x), group_norm(x, n_groups, weights["weight"], weights["bias"]))


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 8), (8, 64), (64, 32)])
def test_residual_block_written_out(n_in, n_out):
    torch.manual_seed(0)
    block = ResidualBlock(n_in, n_out)
    weights = weights_of(block)
    x = torch.randn(2, n_in, 5, 6)
    residual = x
    for i, width in ((1, n_in), (2, n_out)):
        n_groups = {8: 2, 32: 32, 64: 32}[width]
        normed = group_norm(
            residual, n_groups, weights[f"res_path.norm_{i}.weight"], weights[f"res_path.norm_{i}.bias"]
        )
        swished = normed / (1 + torch.exp(-normed))
        residual = F.conv2d(
            swished, weights[f"res_path.conv_{i}.weight"], weights[f"res_path.conv_{i}.bias"], padding=1
        )
    identity = x if n_in == n_out else F.conv2d(x, weights["id_path.weight"], weights["id_path.bias"])
    torch.testing.assert_close(block(x), identity + residual, atol=1e-4, rtol=1e-4)


def test_attention_written_out():
    torch.manual_seed(0)
    block = AttentionBlock(32)
    weights = weights_of(block)
    x = torch.randn(2, 32, 3, 5)
    normed = group_norm(x, 32, weights["norm.weight"], weights["norm.bias"]).flatten(2)  # (B, C, H W)
    q, k, v = (
        weights[f"{name}.weight"][:, :, 0, 0] @ normed + weights[f"{name}.bias"][:, None] for name in ("q", "k", "v")
    )
    scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(32)
    attended = torch.einsum("bqk,bck->bcq", scores.softmax(dim=-1), v)
    out = weights["out.weight"][:, :, 0, 0] @ attended + weights["out.bias"][:, None]
    torch.testing.assert_close(block(x), x + out.reshape(x.shape), atol=1e-5, rtol=1e-5)


def test_downsample_looks_right_and_down():
    layer = downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    x = torch.arange(1.0, 25).reshape(1, 1, 4, 6)
    padded = F.pad(x, (0, 1, 0, 1))[0, 0]
    expected = [[padded[i : i + 3, j : j + 3].sum().item() for j in (0, 2, 4)] for i in (0, 2)]
    assert layer(x)[0, 0].tolist() == expected


def test_upsample_repeats_pixels():
    layer = upsample(3)
    x = torch.randn(2, 3, 2, 4)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x), F.conv2d(repeated, layer.conv.weight, layer.conv.bias, padding=1))


def test_attention_follows_each_block():
    assert list(group(4, 8, 2, attention=True)) == ["block_1", "attention_1", "block_2", "attention_2"]
    assert list(group(4, 8, 2, attention=False)) == ["block_1", "block_2"]
