"""Where codes start and start anew, of one process; of several: test_ranks.py."""

import pytest
import torch
import torch.nn.functional as F

from vqvae.codebook import codes_at_start, sample_codes
from vqvae.kmeans import kmeans

UNIT = pytest.mark.parametrize("unit", [True, False])


def vectors(n: int, unit: bool, dim: int = 4) -> torch.Tensor:
    rows = 5 + 2 * torch.randn(n, dim, generator=torch.Generator().manual_seed(n))
    return F.normalize(rows - 5, dim=1) if unit else rows


def nearest_vector(codes: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cdist(codes, rows, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)


@UNIT
def test_samples_are_different_vectors_nearly(unit):
    rows = vectors(500, unit)
    codes = sample_codes(rows, 40, unit)
    distances, numbers = nearest_vector(codes, rows)
    assert distances.max() < (0.06 if unit else 0.12)
    assert len(numbers.unique()) > 35
    if unit:
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(40))


@UNIT
def test_more_codes_than_vectors(unit):
    """Each vector as often as the others, once more or less, and no two codes alike."""
    rows = vectors(7, unit)
    for codes in (sample_codes(rows, 30, unit), codes_at_start(rows, 30, 5, unit)):
        distances, numbers = nearest_vector(codes, rows)
        assert distances.max() < (0.06 if unit else 0.12)
        assert set(torch.bincount(numbers, minlength=7).tolist()) == {4, 5}
        assert len(codes.unique(dim=0)) == 30


def test_the_shift_has_the_size_of_the_vectors_spread():
    """Of an untrained encoder's vectors, which differ little, and of any unit."""
    rows = vectors(500, unit=False) * 1e-3 + 100
    distances, _ = nearest_vector(sample_codes(rows.double(), 40, unit=False), rows.double())
    assert 1e-6 < distances.min() < distances.max() < 1.2e-4


@UNIT
def test_kmeans_start(unit):
    rows = vectors(500, unit)
    codes = codes_at_start(rows, 20, 6, unit)
    torch.testing.assert_close(codes, kmeans(rows, 20, 6, spherical=unit))
    closer, _ = nearest_vector(rows, codes)
    picked, _ = nearest_vector(rows, codes_at_start(rows, 20, 0, unit))
    assert closer.square().mean() < 0.9 * picked.square().mean()
    if unit:
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(20))
