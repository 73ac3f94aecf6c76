import pytest
import torch

from vqvae.pixels import map_pixels, unmap_pixels


@pytest.mark.parametrize(("value", "mapped"), [(0.0, 0.1), (0.25, 0.3), (0.5, 0.5), (1.0, 0.9)])
def test_phi_by_hand(value, mapped):
    assert map_pixels(torch.tensor(value)).item() == pytest.approx(mapped)
    assert unmap_pixels(torch.tensor(mapped)).item() == pytest.approx(value, abs=1e-6)


def test_round_trip():
    images = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images, atol=1e-6, rtol=0)


def test_the_inverse_stays_in_the_pixel_range():
    shown = unmap_pixels(torch.tensor([0.0, 0.05, 0.1, 0.9, 0.95, 1.0]))
    assert shown.min() == 0
    assert shown.max() == 1
