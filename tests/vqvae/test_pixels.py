import math

import pytest
import torch

from vqvae.pixels import PIXEL_SPACES, map_pixels, unmap_pixels


@pytest.mark.parametrize(("value", "mapped"), [(0.0, 0.1), (0.25, 0.3), (0.5, 0.5), (1.0, 0.9)])
def test_phi_by_hand(value, mapped):
    assert map_pixels(torch.tensor(value)).item() == pytest.approx(mapped)
    assert unmap_pixels(torch.tensor(mapped)).item() == pytest.approx(value, abs=1e-6)


def test_round_trip():
    images = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images, atol=1e-6, rtol=0)


def test_signed_pixels_by_hand():
    signed = PIXEL_SPACES["signed"]
    assert signed.from_images(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-1.0, -0.5, 1.0]
    assert signed.to_images(torch.tensor([-1.0, -0.5, 1.5])).tolist() == [0.0, 0.25, 1.25]


def test_the_picture_shown_for_a_distribution():
    mu = torch.tensor([-9.0, -1.0, 0.0, 9.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    expected = [
        (1 / (1 + math.exp(9)) - 0.1) / 0.8,
        (1 / (1 + math.e) - 0.1) / 0.8,
        0.5,
        (1 / (1 + math.exp(-9)) - 0.1) / 0.8,
    ]
    found = PIXEL_SPACES["logit_laplace"].to_images(torch.cat([mu, torch.full_like(mu, 3.0)], dim=1))
    assert found[:, 2, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("space", PIXEL_SPACES.values())
def test_a_picture_from_maps_of_any_dtype_is_float32(space):
    assert space.to_images(torch.zeros(1, space.n_maps, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32
