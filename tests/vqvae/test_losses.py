import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

from vqvae.losses import (
    RECONSTRUCTION_LOSSES,
    kl_to_uniform,
    logit_laplace_nll,
    squared_error_nll,
)
from vqvae.pixels import PIXEL_SPACES, unmap_pixels


def density(x: np.ndarray, mu: float, ln_b: float) -> np.ndarray:
    """exp(-nll) of the model's own function at mapped values x in [0.1, 0.9]."""
    images = unmap_pixels(torch.tensor(x))
    return torch.exp(-logit_laplace_nll(images, torch.tensor(mu), torch.tensor(ln_b))).double().numpy()


def reference_nll(x: np.ndarray, mu: np.ndarray, ln_b: np.ndarray) -> np.ndarray:
    """Change of variables: a Laplace variable through the logistic function, in float64."""
    log_laplace = scipy.stats.laplace.logpdf(scipy.special.logit(x), loc=mu, scale=np.exp(ln_b))
    return -(log_laplace - np.log(x) - np.log1p(-x))


@pytest.mark.parametrize(("mu", "ln_b"), [(0.0, -2.0), (1.0, -2.5), (-1.2, -3.0)])
def test_logit_laplace_is_a_density(mu, ln_b):
    x = np.linspace(0.1, 0.9, 20_001)
    tails = 1 - np.diff(scipy.stats.laplace.cdf(scipy.special.logit([0.1, 0.9]), loc=mu, scale=math.exp(ln_b)))[0]
    assert tails < 1e-4  # nearly all of it lies where pixels are
    assert scipy.integrate.simpson(density(x, mu, ln_b), x=x) == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize(("mu", "ln_b"), [(0.0, 0.0), (3.0, 1.0), (-2.0, 0.5)])
def test_a_wide_one_misses_just_what_lies_outside_the_pixel_range(mu, ln_b):
    x = np.linspace(0.1, 0.9, 20_001)
    inside = np.diff(scipy.stats.laplace.cdf(scipy.special.logit([0.1, 0.9]), loc=mu, scale=math.exp(ln_b)))[0]
    assert scipy.integrate.simpson(density(x, mu, ln_b), x=x) == pytest.approx(inside, abs=1e-4)


def test_logit_laplace_against_scipy():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (2, 3, 5, 7))
    images[0, 0, 0, :2] = 0, 1
    mu, ln_b = rng.normal(0, 2, images.shape), rng.uniform(-4, 2, images.shape)
    nll = logit_laplace_nll(*(torch.tensor(values, dtype=torch.float32) for values in (images, mu, ln_b)))
    np.testing.assert_allclose(nll.numpy(), reference_nll(0.8 * images + 0.1, mu, ln_b), rtol=2e-5, atol=2e-5)


def test_logit_laplace_by_hand():
    # x = 1/2, logit 0, mu = 2, b = e: 2 / e + 1 + ln 2 + 2 ln(1/2)
    nll = logit_laplace_nll(torch.tensor(0.5), torch.tensor(2.0), torch.tensor(1.0))
    assert nll.item() == pytest.approx(2 / math.e + 1 - math.log(2), rel=1e-6)


def test_squared_error_is_a_normal_up_to_a_constant():
    rng = np.random.default_rng(0)
    images, mu = rng.uniform(0, 1, (1, 3, 4, 4)), rng.normal(0, 2, (1, 3, 4, 4))
    nll = squared_error_nll(*(torch.tensor(values, dtype=torch.float32) for values in (images, mu)))
    normal = scipy.stats.norm(scipy.special.expit(mu), 0.1)
    expected = normal.logpdf(scipy.special.expit(mu)) - normal.logpdf(0.8 * images + 0.1)
    np.testing.assert_allclose(nll.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", RECONSTRUCTION_LOSSES.values())
def test_bf16_maps_are_computed_in_float32(loss):
    images, maps = torch.rand(1, 3, 8, 8), torch.randn(1, PIXEL_SPACES[loss.pixels].n_maps, 8, 8).bfloat16()
    nll = loss.function(images, maps)
    assert nll.dtype == torch.float32
    assert nll.shape == images.shape
    torch.testing.assert_close(nll, loss.function(images, maps.float()), atol=0, rtol=0)


def test_location_comes_before_scale():
    images, mu, ln_b = torch.rand(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    maps = torch.cat([mu, ln_b], dim=1)
    losses = {
        name: loss.function(images, maps) for name, loss in RECONSTRUCTION_LOSSES.items() if loss.pixels != "signed"
    }
    assert torch.equal(losses["logit_laplace"], logit_laplace_nll(images, mu, ln_b))
    assert torch.equal(losses["squared_error"], squared_error_nll(images, mu))


def test_signed_errors_by_hand():
    images, maps = torch.full((1, 3, 1, 1), 0.75), torch.full((1, 3, 1, 1), -0.5)
    assert RECONSTRUCTION_LOSSES["l1"].function(images, maps).unique().tolist() == [1.0]
    assert RECONSTRUCTION_LOSSES["l2"].function(images, maps / -1).unique().tolist() == [0.0]
    assert RECONSTRUCTION_LOSSES["l2"].function(images, maps - 0.5).unique().tolist() == [2.25]


def test_kl_against_scipy():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 50, 3, 4))
    kl = kl_to_uniform(torch.tensor(logits, dtype=torch.float32))
    expected = scipy.stats.entropy(scipy.special.softmax(logits, axis=1), np.full((1, 50, 1, 1), 1 / 50), axis=1)
    assert kl.shape == (2, 3, 4)
    np.testing.assert_allclose(kl.numpy(), expected, rtol=1e-5)


def test_kl_at_its_ends():
    flat, peaked = torch.zeros(1, 8192, 1, 1), torch.zeros(1, 8192, 1, 1)
    peaked[0, 5] = 1e4
    assert kl_to_uniform(flat).item() == pytest.approx(0.0, abs=1e-5)
    assert kl_to_uniform(peaked).item() == pytest.approx(math.log(8192), rel=1e-6)
    assert kl_to_uniform(peaked.bfloat16()).dtype == torch.float32
