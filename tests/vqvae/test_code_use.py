import numpy as np
import pytest
import scipy.stats
import torch

from vqvae.code_use import code_use, count_codes


def test_count_codes():
    counts = count_codes(torch.tensor([[[0, 2], [2, 4]]]), 6)
    assert counts.tolist() == [1, 0, 2, 0, 1, 0]


def test_against_scipy():
    counts = np.random.default_rng(0).poisson(1.0, 100)
    use = code_use(torch.tensor(counts))
    assert use.entropy.item() == pytest.approx(scipy.stats.entropy(counts, base=2), rel=1e-5)
    assert use.codes_used.item() == (counts > 0).sum()
    assert use.usage.item() == pytest.approx((counts > 0).mean())


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5, 5], (4, 1, 2, 4)),
        ([2, 1, 1, 0], (3, 0.75, 1.5, 2**1.5)),
        ([0, 9, 0, 0], (1, 0.25, 0, 1)),
        ([0, 0, 0, 0], (0, 0, 0, 1)),
    ],
)
def test_by_hand(counts, expected):
    assert [float(value) for value in code_use(torch.tensor(counts))] == pytest.approx(list(expected))
