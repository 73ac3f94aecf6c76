import json

import pytest
import torch

from vqvae.config import DiscreteVAEConfig
from vqvae.folders import load_image_tokenizer, load_image_tokenizer_config
from vqvae.model import DiscreteVAE
from vqvae.palette import Palette, PaletteConfig, sample_pixels


@pytest.fixture
def palette() -> Palette:
    palette = Palette(PaletteConfig(image_size=4, codebook_size=4))
    palette.colours.copy_(torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]]))
    return palette.eval()


def test_the_nearest_colour(palette):
    red, grey, blue = (torch.tensor(c)[:, None, None].expand(3, 2, 5) for c in ([0.9, 0.2, 0], [0.4] * 3, [0, 0, 0.6]))
    indices = palette.encode(torch.stack([red, grey, blue]))
    assert indices.dtype == torch.int64
    assert indices.flatten(1).unique(dim=1).squeeze(1).tolist() == [2, 0, 3]
    images = palette.decode(indices)
    assert images.shape == (3, 3, 2, 5)
    assert images[0, :, 0, 0].tolist() == [1, 0, 0]


def test_pixels_keep_their_places(palette):
    indices = torch.randint(4, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(palette.encode(palette.decode(indices)), indices)


def test_fitted_colours_are_those_of_the_pictures():
    colours = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.1, 0.4], [0.5, 0.5, 0.5]])
    pixels = colours[torch.randint(3, (500,), generator=torch.Generator().manual_seed(0))]
    palette = Palette.fit(PaletteConfig(image_size=4, codebook_size=3), pixels)
    found = sorted(palette.colours.tolist())
    assert found == pytest.approx([pytest.approx(c, abs=1e-6) for c in sorted(colours.tolist())])


def test_more_colours_are_nearer():
    pixels = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    images = pixels.t().reshape(1, 3, 40, 50)
    errors = []
    for k in (4, 16, 64):
        palette = Palette.fit(PaletteConfig(image_size=8, codebook_size=k), pixels, steps=10)
        errors.append((palette.decode(palette.encode(images)) - images).square().mean().item())
    assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2]


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (torch.zeros(100, 3), "have 1 colours, fewer than the 4 asked for"),
        (torch.zeros(100, 4), r"expected floats \(N, 3\)"),
        (torch.zeros(100, 3, dtype=torch.uint8), r"expected floats \(N, 3\)"),
    ],
)
def test_pixels_that_make_no_palette(pixels, said):
    with pytest.raises(ValueError, match=said):
        Palette.fit(PaletteConfig(image_size=4, codebook_size=4), pixels)


def test_wrong_input(palette):
    with pytest.raises(ValueError, match="expected floats"):
        palette.encode(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expected floats"):
        palette.encode(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"expected \(B, h, w\) int64"):
        palette.decode(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="indices run from 0 to 4, expected 0 to 3"):
        palette.decode(torch.tensor([[[0, 4]]]))
    for settings, said in (({"image_size": 0}, "image_size is 0"), ({"codebook_size": 1}, "codebook_size is 1")):
        with pytest.raises(ValueError, match=said):
            PaletteConfig(**settings)


def test_folders_of_both_kinds(palette, tmp_path):
    palette.save_pretrained(tmp_path / "palette")
    vae = DiscreteVAE(DiscreteVAEConfig(image_size=8, n_hid=8, n_init=8, n_groups=2, codebook_size=5))
    vae.save_pretrained(tmp_path / "vae")
    for name, model in {"palette": palette, "vae": vae}.items():
        loaded = load_image_tokenizer(tmp_path / name)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        config = load_image_tokenizer_config(tmp_path / name)
        assert (config.codebook_size, config.grid_size) == (loaded.codebook_size, loaded.grid_size)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
        )
    with pytest.raises(ValueError, match=r"config.json is no palette's"):
        Palette.from_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"config.json is of kind 'palette', no discrete VAE's"):
        DiscreteVAE.from_pretrained(tmp_path / "palette")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"kind": "wavelet"}))
    with pytest.raises(ValueError, match=r"config.json is of kind 'wavelet', expected palette or none"):
        load_image_tokenizer(tmp_path / "vae")


def test_sampled_pixels():
    pictures = [torch.full((3, 4, 4), value) for value in (0.1, 0.2)] + [torch.rand(3, 2, 2)]
    pixels = sample_pixels(pictures, 5)
    assert pixels.shape == (5 + 5 + 4, 3)
    assert (pixels[:5] == 0.1).all()
    assert set(map(tuple, pixels[10:].tolist())) == set(map(tuple, pictures[2].flatten(1).t().tolist()))
    assert sample_pixels([], 5).shape == (0, 3)
