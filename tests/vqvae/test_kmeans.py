import itertools

import pytest
import torch
from scipy.cluster.vq import kmeans2

from vqvae.kmeans import kmeans


def test_clusters_are_found():
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    generator = torch.Generator().manual_seed(0)
    vectors = truth.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=generator)
    found = kmeans(vectors, 4, steps=20)
    assert torch.cdist(found, truth).min(dim=0).values.max() < 0.1


def test_one_step_is_lloyds():
    vectors = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    start = kmeans(vectors, 5, steps=0)
    expected, _ = kmeans2(vectors.double().numpy(), start.double().numpy(), iter=1, minit="matrix")
    torch.testing.assert_close(kmeans(vectors, 5, steps=1), torch.tensor(expected).float(), rtol=1e-5, atol=1e-6)


def test_the_error_never_rises_and_the_seed_decides():
    vectors = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    errors = [torch.cdist(vectors, kmeans(vectors, 8, steps)).min(dim=1).values.square().mean() for steps in range(6)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    assert torch.equal(kmeans(vectors, 8, 3, seed=1), kmeans(vectors, 8, 3, seed=1))
    assert not torch.equal(kmeans(vectors, 8, 3, seed=1), kmeans(vectors, 8, 3, seed=2))


def test_every_value_gets_a_centre_where_there_are_enough():
    """Most vectors are equal, so that random starts would be too."""
    vectors = torch.cat([torch.zeros(5000, 2), torch.arange(10.0)[:, None].repeat(1, 2)])
    found = kmeans(vectors, 10, steps=20)
    assert sorted(found[:, 0].tolist()) == pytest.approx(list(range(10)))


def test_more_centres_than_vectors():
    vectors = torch.tensor([[1.0], [2.0]])
    assert set(kmeans(vectors, 5, steps=5).flatten().tolist()) == {1.0, 2.0}
