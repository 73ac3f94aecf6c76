import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqvae.kmeans import kmeans
from vqvae.standardise import Standardise
from vqvae.vector_quantizer import VectorQuantizer


def vq(codebook_size: int = 8, **options) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(codebook_size, 48, **({"codebook_dim": 4} | options))


def batch(seed: int = 0, dim: int = 4) -> torch.Tensor:
    return torch.randn(3, dim, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def units(z_e: torch.Tensor) -> np.ndarray:
    """What training quantizes: standardised by the batch, on the unit sphere; (N, D) float64."""
    rows = z_e.permute(0, 2, 3, 1).reshape(-1, z_e.shape[1]).double().numpy()
    rows = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    return np.square(vectors[:, None] - codebook[None]).sum(axis=-1).argmin(axis=1)


def test_standardise_is_batch_norm():
    """In training and in use, moving averages included but for their estimate of the variance, n against n - 1."""
    ours, theirs = Standardise(4), torch.nn.BatchNorm2d(4, affine=False)
    for seed in range(3):
        torch.testing.assert_close(ours(batch(seed), True), theirs(batch(seed)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var, atol=0, rtol=0.02)
    theirs.running_var.copy_(ours.running_var)
    torch.testing.assert_close(ours(batch(9), False), theirs.eval()(batch(9)))


def test_standardise_has_batch_norms_gradient():
    x, y, weight = batch().requires_grad_(), batch().requires_grad_(), torch.randn(3, 4, 4, 5)
    (Standardise(4)(x, True) * weight).sum().backward()
    (torch.nn.BatchNorm2d(4, affine=False)(y) * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)


def test_standardise_separates_what_nearly_coincides():
    z = 100 + 0.01 * torch.randn(8, 4, 4, 4)
    out = Standardise(4)(z, True)
    assert out.mean().item() == pytest.approx(0, abs=0.01)
    assert out.std().item() > 0.9


def test_nearest_equals_brute_force():
    quantizer = vq(64, codebook_dim=6)
    quantizer(batch(dim=6))
    quantizer.eval()
    z_e = batch(1, dim=6)
    rows = z_e.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    running = quantizer.standardise
    rows = (rows - running.running_mean.numpy()) / np.sqrt(running.running_var.numpy() + 1e-5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = brute_force(rows, quantizer.codebook.double().numpy())
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(quantizer.hard_indices(z_e).flatten().numpy(), expected)


def test_codes_have_length_one_whatever_a_weight_average_made_of_the_sums():
    """Averages of moving unit vectors are shorter; the largest product would not be the nearest code then."""
    quantizer = vq(64)
    quantizer(batch())
    quantizer.eval()
    before = quantizer(batch(1))
    quantizer.sums *= torch.linspace(0.1, 1, 64)[:, None]
    after = quantizer(batch(1))
    assert torch.equal(after.indices, before.indices)
    torch.testing.assert_close(after.z_q, before.z_q)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(64))


def test_first_batch_starts_the_codebook():
    quantizer = vq(8, decay=1 - 1e-6, restart_below=0.0)
    quantizer(batch())
    vectors = torch.tensor(units(batch()), dtype=torch.float32)
    distances = torch.cdist(quantizer.codebook, vectors).amin(dim=1)
    assert distances.max() < 0.08  # the noise that sets repeated ones apart is 0.01 a number
    torch.testing.assert_close(quantizer.counts, torch.ones(8), atol=1e-4, rtol=0)
    started = quantizer.codebook.clone()
    quantizer(batch(1))
    assert (quantizer.codebook - started).abs().max() < 1e-3  # and no other does


def test_more_codes_than_vectors_start_apart():
    quantizer = vq(200)
    quantizer(batch())
    assert len(quantizer.codebook.unique(dim=0)) == 200


def test_moving_averages_by_hand():
    decay = 0.9
    quantizer = vq(8, decay=decay, restart_below=0.0)
    quantizer(batch())
    counts, sums = quantizer.counts.double().numpy(), quantizer.sums.double().numpy()
    for seed in (1, 2, 3):
        vectors = units(batch(seed))
        indices = brute_force(vectors, sums / np.linalg.norm(sums, axis=1, keepdims=True))
        quantized = quantizer(batch(seed))
        np.testing.assert_array_equal(quantized.indices.flatten().numpy(), indices)
        for code in range(8):
            chosen = vectors[indices == code]
            counts[code] = decay * counts[code] + (1 - decay) * len(chosen)
            sums[code] = decay * sums[code] + (1 - decay) * chosen.sum(axis=0)
        np.testing.assert_allclose(quantizer.counts.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(quantizer.sums.numpy(), sums, rtol=1e-4, atol=1e-5)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(quantizer.codebook.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_codes_of_a_batch_are_those_before_its_update():
    quantizer = vq(8, decay=0.5)
    quantizer(batch())
    codes = quantizer.codebook.clone()
    quantized = quantizer(batch(1))
    chosen = F.embedding(quantized.indices, codes).permute(0, 3, 1, 2)
    torch.testing.assert_close(quantized.z_q, chosen, atol=1e-5, rtol=0)
    assert not torch.allclose(quantizer.codebook, codes, atol=1e-3)


def test_dead_codes_restart_at_vectors_of_the_batch():
    quantizer = vq(8, decay=0.5, restart_below=0.2)
    quantizer.counts.copy_(torch.tensor([9.0, 9.0, 0.39, 0.41, 9.0, 0.0, 9.0, 9.0]))
    quantizer.sums *= quantizer.counts[:, None].clamp(min=0.01)
    before = quantizer.sums.clone()
    vectors = torch.tensor(units(batch(1)), dtype=torch.float32)
    quantizer._update(vectors, torch.zeros(len(vectors), dtype=torch.int64))  # all of them went to code 0
    assert quantizer.counts.tolist() == pytest.approx([4.5 + 30, 4.5, 1.0, 0.205, 4.5, 1.0, 4.5, 4.5])
    restarted = quantizer.sums[[2, 5]]
    torch.testing.assert_close(restarted.norm(dim=1), torch.ones(2))
    assert torch.cdist(restarted, vectors).amin(dim=1).max() < 0.08
    assert torch.cdist(restarted, before[[2, 5]]).diagonal().min() > 0.1
    torch.testing.assert_close(quantizer.sums[[1, 3, 4, 6, 7]], before[[1, 3, 4, 6, 7]] / 2)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_code_idle_for_thousands_of_updates_stays_where_it_is(normalise):
    torch.manual_seed(0)
    options = {"decay": 0.5, "restart_below": 0, "normalise": normalise, "standardise": False}
    quantizer = VectorQuantizer(8, 1, codebook_dim=4, **options)
    vectors = torch.randn(1, 4, 4, 4)
    quantizer.train()(vectors)
    before = quantizer.codebook.clone()
    for _ in range(1000):
        quantizer(vectors[:, :, :1, :1].expand_as(vectors) + 1e-3 * torch.randn_like(vectors))
    idle = quantizer.counts < 1e-4
    assert idle.sum() >= 4
    torch.testing.assert_close(quantizer.codebook[idle], before[idle], atol=1e-3, rtol=0)


def test_codes_in_use_do_not_restart():
    torch.manual_seed(0)
    quantizer = vq(4, restart_below=0.05)
    quantizer(batch())
    before = copy.deepcopy(quantizer)
    torch.manual_seed(1)
    quantizer(batch(1))
    torch.manual_seed(2)
    before(batch(1))
    assert torch.equal(quantizer.sums, before.sums)  # other random numbers, none of them used


def test_a_codebook_larger_than_its_need_stays_in_use():
    """The vectors form few clusters, yet restarts keep finding new places."""
    quantizer = vq(32, decay=0.8, restart_below=0.5)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 4, generator=generator)
    seen = set()
    for _ in range(60):
        pick = torch.randint(40, (8, 4, 4), generator=generator)
        seen = set(quantizer(centres[pick].permute(0, 3, 1, 2)).indices.flatten().tolist())
    assert len(seen) >= 24


def test_gradient_passes_straight_through():
    """With respect to the vector on the sphere: that of z_q is the identity, the loss pulls to the code."""
    quantizer = vq(8, commitment=0.3).eval()
    z = F.normalize(torch.randn(1, 4, 2, 3), dim=1).requires_grad_()
    quantized = quantizer._quantize(z)
    upstream = torch.randn_like(z)
    (through,) = torch.autograd.grad(quantized.z_q, z, upstream, retain_graph=True)
    torch.testing.assert_close(through, upstream)
    (pull,) = torch.autograd.grad(quantized.loss, z)
    codes = quantizer.indices_to_codes(quantized.indices)
    torch.testing.assert_close(pull, 2 * 0.3 * (z - codes).detach() / 6)
    torch.testing.assert_close(quantized.z_q, codes, atol=1e-6, rtol=0)


def test_commitment_loss_by_hand():
    quantizer = vq(8, commitment=0.3)
    quantizer(batch())
    codes = quantizer.codebook.double().numpy()
    quantized = quantizer(batch(1))
    vectors = units(batch(1))
    expected = np.square(vectors - codes[brute_force(vectors, codes)]).sum(axis=1).mean()
    assert quantized.parts["commitment"].item() == pytest.approx(expected, rel=1e-4)
    assert quantized.loss.item() == pytest.approx(0.3 * expected, rel=1e-4)


def given(normalise: bool, **options) -> VectorQuantizer:
    """A codebook of 32 codes by gradient, of any length, as other people's checkpoints have it."""
    quantizer = vq(32, ema=False, normalise=normalise, standardise=False, **options)
    lengths = torch.linspace(0.2, 3, 32)[:, None]
    with torch.no_grad():
        quantizer.embedding.copy_(lengths * torch.randn(32, 4, generator=torch.Generator().manual_seed(5)))
        quantizer.counts.fill_(1.0)
    return quantizer


@pytest.mark.parametrize("normalise", [True, False])
def test_a_codebook_that_is_given(normalise):
    quantizer = given(normalise).eval()
    codes, rows = quantizer.embedding.detach().double(), batch(1).movedim(1, -1).reshape(-1, 4).double()
    if normalise:
        codes, rows = F.normalize(codes, dim=1), F.normalize(rows, dim=1)
    expected = brute_force(rows.numpy(), codes.numpy())
    assert len(np.unique(expected)) > 10
    indices = quantizer.hard_indices(batch(1))
    np.testing.assert_array_equal(indices.flatten().numpy(), expected)
    chosen = codes[expected].float().view(3, 4, 5, 4).movedim(-1, 1)
    torch.testing.assert_close(quantizer.indices_to_codes(indices), chosen)
    torch.testing.assert_close(quantizer(batch(1)).z_q, chosen)


@pytest.mark.parametrize("normalise", [True, False])
def test_losses_by_gradient(normalise):
    """|sg(z_e) - e|^2 + beta |z_e - sg(e)|^2, each with its gradient alone, in float64."""
    quantizer, z_e = given(normalise, commitment=0.3, restart_below=0.0), batch(1).requires_grad_()
    codes = quantizer.embedding.detach().double().requires_grad_()
    vectors = batch(1).double().requires_grad_()
    quantized = quantizer(z_e)
    rows, chosen = vectors.movedim(1, -1).reshape(-1, 4), codes[quantized.indices.flatten()]
    if normalise:
        rows, chosen = rows / rows.norm(dim=1, keepdim=True), chosen / chosen.norm(dim=1, keepdim=True)
    distance = (rows - chosen).square().sum(dim=1).mean()
    assert quantized.loss.item() == pytest.approx(1.3 * distance.item(), rel=1e-5)
    assert quantized.parts["commitment"].item() == pytest.approx(distance.item(), rel=1e-5)
    of_vectors, of_codes = torch.autograd.grad(quantized.loss, [z_e, quantizer.embedding])
    expected_of_vectors, expected_of_codes = torch.autograd.grad(distance, [vectors, codes])
    torch.testing.assert_close(of_vectors.double(), 0.3 * expected_of_vectors, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(of_codes.double(), expected_of_codes, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_decoders_gradient_does_not_reach_the_codes(normalise):
    quantizer = given(normalise)
    z_q = quantizer(batch(1).requires_grad_()).z_q
    assert torch.autograd.grad(z_q.sum(), quantizer.embedding, allow_unused=True) == (None,)


@pytest.mark.parametrize("options", [{}, {"ema": False}, {"ema": False, "normalise": False}, {"normalise": False}])
def test_dead_codes_restart_in_every_codebook(options):
    """And count as one vector each, so that a mean is its vector."""
    quantizer = vq(8, standardise=False, decay=0.5, restart_below=0.2, **options)
    quantizer(batch())
    quantizer.counts[[2, 5]] = 0.1
    before = quantizer.codebook.detach().clone()
    vectors = batch(1).movedim(1, -1).reshape(-1, 4)
    vectors = F.normalize(vectors, dim=1) if quantizer.normalise else vectors
    quantizer._update(vectors, torch.tensor([0, 1, 3, 4, 6, 7]).repeat(len(vectors) // 6))
    restarted = quantizer.codebook.detach()[[2, 5]]
    assert quantizer.counts[[2, 5]].tolist() == [1.0, 1.0]
    assert torch.cdist(restarted, vectors).amin(dim=1).max() < 0.15
    assert (restarted - before[[2, 5]]).norm(dim=1).min() > 0.15
    if not quantizer.ema:
        torch.testing.assert_close(quantizer.codebook[[0, 1, 3, 4, 6, 7]], before[[0, 1, 3, 4, 6, 7]])


@pytest.mark.parametrize("options", [{}, {"ema": False}, {"ema": False, "normalise": False}, {"normalise": False}])
def test_starts_at_the_centres_of_the_first_batch_alone(options):
    quantizer = vq(8, standardise=False, kmeans_steps=4, decay=1 - 1e-6, restart_below=0.0, **options)
    vectors = batch().movedim(1, -1).reshape(-1, 4)
    vectors = F.normalize(vectors, dim=1) if quantizer.normalise else vectors
    quantizer(batch())
    started = quantizer.codebook.detach().clone()
    torch.testing.assert_close(started, kmeans(vectors, 8, 4, spherical=quantizer.normalise), atol=1e-4, rtol=1e-4)
    quantizer(batch(1))
    torch.testing.assert_close(quantizer.codebook, started, atol=1e-4, rtol=1e-4)


def test_a_weight_average_of_plain_codes_is_among_them():
    """Of sums and counts each: their quotient is the mean by how often each was chosen."""
    runs = [vq(8, normalise=False, decay=0.5) for _ in range(2)]
    for seed, quantizer in enumerate(runs):
        quantizer(batch(seed))
    average = copy.deepcopy(runs[0])
    for name, tensor in average.state_dict().items():
        tensor.lerp_(runs[1].state_dict()[name], 0.5)
    shares = [quantizer.counts[:, None] / (2 * average.counts[:, None]) for quantizer in runs]
    expected = shares[0] * runs[0].codebook + shares[1] * runs[1].codebook
    torch.testing.assert_close(average.codebook, expected)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"sums", "counts", "standardise.running_mean", "standardise.running_var"}),
        ({"normalise": False, "standardise": False}, {"sums", "counts"}),
        ({"ema": False, "standardise": False}, {"embedding", "counts"}),
    ],
)
def test_names_in_a_checkpoint(options, names):
    quantizer = vq(**options)
    assert quantizer.state_dict().keys() == names
    assert [name for name, _ in quantizer.named_parameters()] == ["embedding"] * ("embedding" in names)


@pytest.mark.parametrize("normalise", [True, False])
def test_codes_of_a_gradient_codebook_may_restart_before_the_backward_pass(normalise):
    quantizer = vq(64, ema=False, normalise=normalise, decay=0.5, restart_below=0.9)
    quantizer(batch())
    before = quantizer.embedding.detach().clone()
    quantized = quantizer(batch(1))
    assert not torch.equal(quantizer.embedding, before)
    (gradient,) = torch.autograd.grad(quantized.loss, quantizer.embedding)
    assert gradient.isfinite().all()
    assert (gradient.norm(dim=1) > 0).sum() == len(quantized.indices.unique())


def test_no_schedules():
    assert vq().anneal(1000) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_dim": 0}, "codebook_dim is 0, expected a whole number of at least 1"),
        ({"codebook_dim": 2.5}, r"codebook_dim is 2.5, expected a whole number"),
        ({"commitment": -1}, "commitment is -1, expected at least 0"),
        ({"decay": 1.0}, r"decay is 1.0, expected a number between 0 and 1"),
        ({"decay": math.nan}, "decay is nan"),
        ({"restart_below": 1.0}, r"restart_below is 1.0, expected 0 to less than 1"),
        ({"restart_below": -0.1}, "restart_below is -0.1"),
        ({"ema": 2}, "ema is 2, expected true or false"),
        ({"normalise": 0.5}, "normalise is 0.5, expected true or false"),
        ({"standardise": 0}, "standardise is 0, expected true or false"),
        ({"rotate": 1}, "rotate is 1, expected true or false"),
        ({"kmeans_steps": -1}, "kmeans_steps is -1, expected a whole number of at least 0"),
        ({"kmeans_steps": 2.5}, "kmeans_steps is 2.5, expected a whole number"),
        ({"kmeans_steps": True}, "kmeans_steps is True, expected a whole number"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vq(**options)
