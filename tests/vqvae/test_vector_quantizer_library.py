"""VectorQuantizer against vector-quantize-pytorch's, step by step from the same codebook.

Its losses are means over channels too, ours are sums: its weights are ours times their number.
"""

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans as their_kmeans

from vqvae.kmeans import kmeans
from vqvae.vector_quantizer import VectorQuantizer

CODES, DIM, DECAY, COMMITMENT, STEPS = 24, 5, 0.8, 0.3, 6
OPTIONS = {"codebook_dim": DIM, "standardise": False, "restart_below": 0.0, "decay": DECAY}


def batch(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(3, DIM, 4, 5, generator=generator) + 0.5).requires_grad_()


def start() -> torch.Tensor:
    return torch.randn(CODES, DIM, generator=torch.Generator().manual_seed(100))


def theirs(codes: torch.Tensor, commitment: float = COMMITMENT, **options) -> VectorQuantize:
    """Without the smoothing of counts, which keeps codes away from 0 / 0 that here restart."""
    settings = {"decay": DECAY, "eps": 0.0, "accept_image_fmap": True, "rotation_trick": False} | options
    quantizer = VectorQuantize(DIM, CODES, commitment_weight=commitment * DIM, **settings)
    with torch.no_grad():
        quantizer._codebook.embed.copy_(codes)
        quantizer._codebook.embed_avg.copy_(codes)
    return quantizer


def ours(codes: torch.Tensor, **options) -> VectorQuantizer:
    quantizer = VectorQuantizer(CODES, 48, **OPTIONS | {"commitment": COMMITMENT} | options)
    with torch.no_grad():
        (quantizer.sums if quantizer.ema else quantizer.embedding).copy_(codes)
        quantizer.counts.fill_(1.0)
    return quantizer


def compare(ours: VectorQuantizer, theirs: VectorQuantize, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch: codes, what is put through and its gradient. Returns both losses."""
    x, y, upstream = batch(step), batch(step), batch(step + 50).detach()
    quantized, (codes, indices, loss) = ours(x), theirs(y)
    assert torch.equal(quantized.indices, indices)
    assert len(indices.unique()) > CODES / 3
    torch.testing.assert_close(quantized.z_q, codes)
    (gradient,) = torch.autograd.grad((quantized.z_q * upstream).sum() + quantized.loss, x, retain_graph=True)
    (expected,) = torch.autograd.grad((codes * upstream).sum() + loss, y, retain_graph=True)
    torch.testing.assert_close(gradient, expected)
    return quantized.loss, loss.squeeze()


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_moving_averages(normalise, rotate):
    codes = F.normalize(start(), dim=1) if normalise else start()
    mine = ours(codes, normalise=normalise, rotate=rotate)
    library = theirs(codes, use_cosine_sim=normalise, rotation_trick=rotate)
    for step in range(STEPS):
        torch.testing.assert_close(*compare(mine, library, step))
        torch.testing.assert_close(mine.counts, library._codebook.cluster_size[0])
        torch.testing.assert_close(mine.sums, library._codebook.embed_avg[0])
        torch.testing.assert_close(mine.codebook, library.codebook)
    torch.testing.assert_close(mine.eval()(batch(99)).z_q, library.eval()(batch(99))[0])


@pytest.mark.parametrize("rotate", [False, True])
def test_codebook_by_gradient(rotate):
    """Theirs pulls both ways with one weight, so the commitment is 1; the loss is then two of theirs."""
    mine = ours(start(), ema=False, normalise=False, commitment=1.0, rotate=rotate)
    library = theirs(start(), 1.0, ema_update=False, learnable_codebook=True, rotation_trick=rotate)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.5) for module in (mine, library)]
    for step in range(STEPS):
        losses = compare(mine, library, step)
        torch.testing.assert_close(losses[0], 2 * losses[1])
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(mine.codebook, library.codebook)
    assert (mine.codebook - start()).abs().max() > 0.1


@pytest.mark.parametrize("spherical", [False, True])
def test_kmeans(spherical):
    vectors = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    vectors = F.normalize(vectors, dim=1) if spherical else vectors
    first = kmeans(vectors, 16, steps=0)
    expected, counts = their_kmeans(vectors[None], 16, 5, use_cosine_sim=spherical, sample_fn=lambda *_: first[None])
    assert (counts > 0).all()
    torch.testing.assert_close(kmeans(vectors, 16, steps=5, spherical=spherical), expected[0])
