import numpy as np
import pytest
import torch

from vqvae.config import DiscreteVAEConfig
from vqvae.model import DiscreteVAE
from vqvae.tiling import decode_tiled, encode_tiled, margin

SIZES = {"image_size": 16, "n_hid": 8, "n_init": 8, "n_groups": 3, "n_blk_per_group": 1, "codebook_size": 32}


def model(network: str = "dalle", **settings) -> DiscreteVAE:
    torch.manual_seed(0)
    gain = {"post_gain": 1.0} if network == "dalle" else {}
    return DiscreteVAE(DiscreteVAEConfig(**SIZES | gain | {"network": network} | settings)).eval()


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(3, 4 * 37, 4 * 22, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tile", [5, 16, 64])
def test_the_papers_network_gives_what_the_whole_picture_does(picture, tile):
    vae = model()
    indices = vae.encode(picture[None])[0]
    assert len(indices.unique()) > 3
    assert torch.equal(encode_tiled(vae, picture, tile), indices)
    whole = vae.decode(indices[None])[0]
    tiled = decode_tiled(vae, indices, tile, out=torch.empty_like(whole))
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)
    assert torch.equal(decode_tiled(vae, indices, tile), (255 * tiled).round().to(torch.uint8))


@pytest.mark.parametrize("settings", [{}, {"n_groups": 4, "n_hid": 4}, {"n_blk_per_group": 2}, {"n_groups": 2}])
def test_the_margin_is_as_far_as_a_token_looks_and_no_token_more(settings):
    vae = model(**settings).double()
    for group in vae.encoder.modules():  # in which every pixel counts
        for name, layer in list(group.named_children()):
            if isinstance(layer, torch.nn.MaxPool2d | torch.nn.ReLU):
                setattr(group, name, torch.nn.AvgPool2d(2) if name == "pool" else torch.nn.Identity())
    around, factor = margin(vae.config), vae.config.downsample_factor
    side = 2 * around + 5
    images = torch.rand(1, 3, factor * side, factor * side, dtype=torch.float64, requires_grad=True)
    vae.encode_vectors(images)[0, :, around + 2, around + 2].sum().backward()
    seen = images.grad.abs().amax(dim=(0, 1, 2)).nonzero().flatten() // factor
    farthest = max(around + 2 - seen.min().item(), seen.max().item() - around - 2)
    assert farthest == around


def test_the_papers_own_size():
    assert margin(DiscreteVAEConfig()) == 12


def test_too_small_a_margin_shows(picture, monkeypatch):
    vae = model()
    monkeypatch.setattr("vqvae.tiling.margin", lambda config: 1)
    assert not torch.equal(encode_tiled(vae, picture, 8), vae.encode(picture[None])[0])


def test_vqgans_network_has_no_seams():
    """Across the border of two tiles, pixels differ no more than elsewhere in the whole picture."""
    vae = model("conv", pixels="signed", n_hid=16)
    indices = torch.randint(32, (96, 90), generator=torch.Generator().manual_seed(0))
    tiled = decode_tiled(vae, indices, 32, out=torch.empty(3, 384, 360))
    whole = vae.decode(indices[None])[0]
    steps = (tiled[:, 1:] - tiled[:, :-1]).abs().mean(dim=(0, 2)), (tiled[..., 1:] - tiled[..., :-1]).abs().mean((0, 1))
    for along in steps:
        usual = along.unfold(0, 4, 4).mean(dim=0)  # by the place in a token
        for border in (4 * 32, 4 * 64):
            assert along[border - 1] < 1.1 * usual[(border - 1) % 4]
    assert (tiled - whole).abs().mean() < 0.1 * whole.std()
    assert encode_tiled(vae, tiled, 32).shape == (96, 90)


def test_pictures_on_the_disk(tmp_path, picture):
    vae = model()
    values = (255 * picture).round().to(torch.uint8)
    source = np.memmap(tmp_path / "in", np.uint8, "w+", shape=tuple(values.shape))
    source[:] = values.numpy()
    indices = encode_tiled(vae, torch.from_numpy(source), 8)
    assert torch.equal(indices, vae.encode(values[None] / 255)[0])
    target = np.memmap(tmp_path / "out", np.uint8, "w+", shape=tuple(values.shape))
    decode_tiled(vae, indices, 8, out=torch.from_numpy(target))
    assert np.array_equal(target, decode_tiled(vae, indices, 100).numpy())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda vae: encode_tiled(vae, torch.zeros(3, 18, 16)), r"expected \(3, H, W\) with H and W multiples of 4"),
        (lambda vae: encode_tiled(vae, torch.zeros(1, 3, 16, 16)), r"expected \(3, H, W\)"),
        (lambda vae: encode_tiled(vae, torch.zeros(3, 0, 16)), r"expected \(3, H, W\)"),
        (lambda vae: encode_tiled(vae, torch.zeros(3, 16, 16, dtype=torch.int32)), "expected floats in .* or uint8"),
        (lambda vae: encode_tiled(vae, torch.zeros(3, 16, 16), 0), "tile is 0"),
        (lambda vae: decode_tiled(vae, torch.zeros(1, 4, 4, dtype=torch.int64)), r"expected \(h, w\)"),
        (lambda vae: decode_tiled(vae, torch.full((4, 4), 32)), "expected 0 to 31"),
        (
            lambda vae: decode_tiled(vae, torch.zeros(4, 4, dtype=torch.int64), out=torch.zeros(3, 16, 15)),
            r"out is torch.float32 \(3, 16, 15\), expected uint8 or float32 \(3, 16, 16\)",
        ),
    ],
)
def test_wrong_input(call, said):
    with pytest.raises(ValueError, match=said):
        call(model())


def test_a_wrong_index_in_the_last_row_is_found_before_anything_is_written():
    indices, out = torch.zeros(40, 4, dtype=torch.int64), torch.full((3, 160, 16), -1.0)
    indices[-1, -1] = 32
    with pytest.raises(ValueError, match="expected 0 to 31"):
        decode_tiled(model(), indices, 8, out=out)
    assert (out == -1).all()
