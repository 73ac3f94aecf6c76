import math

import pytest
import torch
import torch.nn.functional as F

from vqvae.gumbel import Gumbel
from vqvae.losses import kl_to_uniform


def gumbel(**options) -> Gumbel:
    return Gumbel(16, 192, **options)


def test_soft_in_the_forward_pass():
    torch.manual_seed(0)
    z_q = gumbel()(torch.randn(2, 16, 3, 4)).z_q
    torch.testing.assert_close(z_q.sum(dim=1), torch.ones(2, 3, 4))
    assert (z_q > 0).all()
    assert z_q.amax(dim=1).mean() < 0.8


def test_soft_in_the_backward_pass():
    """The gradient is that of the softmax itself, by differences; straight-through would have nothing to do with it."""
    logits = torch.randn(1, 16, 1, 1, dtype=torch.float64, requires_grad=True)
    quantizer, target = gumbel(tau_start=0.7), torch.randn(16)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return (quantizer(logits).z_q[0, :, 0, 0] * target).sum()

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    step = 1e-2
    for code in range(16):
        shift = torch.zeros_like(logits)
        shift[0, code] = step
        difference = (loss(logits.detach() + shift) - loss(logits.detach() - shift)) / (2 * step)
        assert gradient[0, code].item() == pytest.approx(difference.item(), abs=1e-3)


def test_noise_is_gumbels():
    """The largest of logits + noise is a draw from the softmax."""
    torch.manual_seed(0)
    logits = torch.linspace(-2, 2, 16).view(1, 16, 1, 1).expand(1, 16, 200, 200)
    drawn = gumbel()(logits).z_q.argmax(dim=1).flatten()
    frequencies = F.one_hot(drawn, 16).double().mean(dim=0)
    torch.testing.assert_close(frequencies, logits[0, :, 0, 0].double().softmax(dim=0), atol=0.01, rtol=0)


def test_temperature_sharpens():
    logits, sharpness = torch.randn(2, 16, 8, 8), []
    for tau in (4.0, 1.0, 1 / 16):
        torch.manual_seed(0)
        sharpness.append(gumbel(tau_start=tau, tau_end=tau)(logits).z_q.amax(dim=1).mean().item())
    assert sharpness == sorted(sharpness)
    assert sharpness[0] < 0.3
    assert sharpness[2] > 0.9


def test_hard_codes_are_the_argmax_without_noise():
    logits = torch.randn(2, 16, 3, 4)
    quantizer = gumbel().eval()
    quantized = quantizer(logits)
    assert torch.equal(quantized.indices, logits.argmax(dim=1))
    assert torch.equal(quantized.z_q, F.one_hot(logits.argmax(dim=1), 16).permute(0, 3, 1, 2).float())
    assert torch.equal(quantized.logits, logits)
    torch.manual_seed(5)
    assert torch.equal(quantizer.train()(logits).indices, logits.argmax(dim=1))


def test_loss_is_the_kl_of_the_raw_logits_times_beta_over_192():
    logits = torch.randn(2, 16, 3, 4)
    quantizer = gumbel(tau_start=0.2)
    quantizer.anneal(5_000)
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)
        quantized = quantizer(logits)
        losses.append(quantized.loss.item())
        assert quantized.parts["kl"].item() == pytest.approx(kl_to_uniform(logits).mean().item())
    assert losses == pytest.approx([6.6 / 192 * kl_to_uniform(logits).mean().item()] * 2)


def test_beta_over_192_is_the_papers_weight():
    """KL summed over the grid, as all of the loss divided by the number of colour values: 256 x 256 x 3."""
    logits = torch.randn(1, 16, 32, 32)
    quantizer = gumbel()
    quantizer.anneal(10**6)
    summed = kl_to_uniform(logits).sum().item()
    assert quantizer(logits).loss.item() == pytest.approx(6.6 * summed / (256 * 256 * 3), rel=1e-5)


def test_loss_starts_without_the_kl():
    assert gumbel()(torch.randn(1, 16, 2, 2)).loss.item() == 0.0


def test_anneal_sets_what_it_returns():
    quantizer = gumbel(tau_start=2.0, tau_end=0.5, tau_steps=4, beta=3.0, beta_steps=2)
    assert quantizer.anneal(1) == pytest.approx({"tau": 1.25 + 0.75 * math.sqrt(0.5), "beta": 1.5})
    assert (quantizer.tau, quantizer.beta) == tuple(quantizer.anneal(1).values())
    assert quantizer.anneal(4) == {"tau": 0.5, "beta": 3.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_end": 0.0}, r"tau_end is 0.0 and tau_start 1.0, expected 0 < tau_end <= tau_start"),
        ({"tau_start": 0.5, "tau_end": 1.0}, r"tau_end is 1.0 and tau_start 0.5"),
        ({"tau_steps": -1}, "tau_steps is -1, expected at least 0"),
        ({"beta": -0.1}, r"beta is -0.1, expected at least 0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"beta_steps": -5}, "beta_steps is -5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gumbel(**options)
