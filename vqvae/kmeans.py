"""k-means by Lloyd's iterations, the nearest of many centres without a matrix of all distances."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.nearest import nearest_code


@torch.no_grad()
def kmeans(vectors: Tensor, n_clusters: int, steps: int, seed: int = 0, spherical: bool = False) -> Tensor:
    """Centres (K, D) of the vectors (N, D), which are float32; N may be below K, and vectors may be equal.

    With `spherical`, vectors have length 1 and so have the centres: the directions of their means (Dhillon and Modha,
    "Concept decompositions for large sparse text data using clustering", 2001).

    It starts at vectors picked at random, different ones while there are any. A centre that no vector is nearest to
    moves to the vector that is farthest from its own. Ends after `steps`, or when nothing moves any more.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = _start(vectors, n_clusters, generator)
    for _ in range(steps):
        nearest = nearest_code(vectors, centres)
        counts = torch.bincount(nearest, minlength=n_clusters)
        # In float64, so that the order of summation does not show.
        sums = torch.zeros(n_clusters, vectors.shape[1], dtype=torch.float64, device=vectors.device)
        sums.index_add_(0, nearest, vectors.double())
        moved = torch.where(counts[:, None] > 0, (sums / counts.clamp(min=1)[:, None]).to(vectors.dtype), centres)
        if spherical:
            moved = F.normalize(moved, dim=1)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            errors = (vectors - centres[nearest]).square().sum(dim=1)
            farthest = errors.topk(min(len(empty), len(vectors))).indices
            farthest = farthest[errors[farthest] > 0]  # where all vectors have a centre, spare ones stay
            moved[empty[: len(farthest)]] = vectors[farthest]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _start(vectors: Tensor, n_clusters: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    picked = vectors[order[: 16 * n_clusters]]
    different = torch.unique(picked, dim=0)
    different = different[torch.randperm(len(different), generator=generator).to(vectors.device)]
    return different.repeat(-(-n_clusters // len(different)), 1)[:n_clusters].clone()
