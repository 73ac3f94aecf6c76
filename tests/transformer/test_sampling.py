import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from transformer import sampling
from transformer.noise import exponential_noise
from transformer.sampling import SamplingConfig, choose_token, guide, sample_token, warp_logits


class _NoFloat64(TorchDispatchMode):
    """Refuses float64 on all devices but the CPU, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "cpu" and result.dtype == torch.float64:
            raise TypeError(f"float64 on {result.device}")
        return result


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 2.0, "top_k": 3, "top_p": 0.9}])
def test_devices_without_float64_draw_on_the_cpu(monkeypatch, settings):
    """On a made-up device; MPS itself is there on Apple's computers only."""
    config = SamplingConfig(**settings)
    with FakeTensorMode(), _NoFloat64():
        logits = torch.zeros(4 if config.guided else 2, 8, device="cuda")
        seeds = torch.zeros(2, dtype=torch.int64, device="cuda")
        with pytest.raises(TypeError, match="float64 on cuda"):
            choose_token(logits, seeds, 3, config)
        monkeypatch.setattr(sampling, "WITHOUT_FLOAT64", (*sampling.WITHOUT_FLOAT64, "cuda"))
        token = choose_token(logits, seeds, 3, config)
    assert (token.shape, token.dtype, token.device.type) == ((2,), torch.int64, "cuda")


def test_guidance_ends():
    cond, null = torch.randn(2, 4, 7)
    torch.testing.assert_close(guide(cond, null, 1.0), cond)
    torch.testing.assert_close(guide(cond, null, 0.0), null)
    torch.testing.assert_close(guide(cond, null, 3.0), cond + 2 * (cond - null))


def probabilities(logits: list[float], **settings) -> list[float]:
    return warp_logits(torch.tensor([logits]), SamplingConfig(**settings)).softmax(dim=-1)[0].tolist()


EIGHTHS = [math.log(1 / 8), math.log(4 / 8), math.log(1 / 8), math.log(2 / 8)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1 / 8, 4 / 8, 1 / 8, 2 / 8]),
        ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 6, 0, 2 / 6]),
        ({"top_k": 9}, [1 / 8, 4 / 8, 1 / 8, 2 / 8]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 4 / 6, 0, 2 / 6]),
        ({"top_p": 0.8}, [1 / 7, 4 / 7, 0, 2 / 7]),
        ({"top_p": 1.0}, [1 / 8, 4 / 8, 1 / 8, 2 / 8]),
        # Top-p works on what top-k leaves: 4/6 and 2/6, of which the first alone reaches 0.6.
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),
    ],
)
def test_warped_distributions_by_hand(settings, expected):
    assert probabilities(EIGHTHS, **settings) == pytest.approx(expected, abs=1e-6)


def test_draws_follow_the_distribution():
    """20,000 seeds against the probabilities, within four standard deviations."""
    expected = torch.tensor([0.05, 0.5, 0.0, 0.2, 0.25])
    count = 20_000
    for position in (0, 17):
        noise = exponential_noise(torch.arange(count), position, 5)
        drawn = sample_token(expected.log().expand(count, 5), noise)
        shares = torch.bincount(drawn, minlength=5) / count
        assert (shares - expected).abs().le(4 * (expected * (1 - expected) / count).sqrt()).all()


def test_rounding_hardly_ever_changes_a_draw():
    """Logits off by what sums in another order are off by, over as many tokens as two pictures of 32x32 have."""
    torch.manual_seed(0)
    logits = torch.randn(2000, 2048) * 2
    noise = exponential_noise(torch.arange(2000), 0, 2048)
    nudged = logits + 1e-6 * torch.randn_like(logits)
    assert torch.equal(sample_token(logits, noise), sample_token(nudged, noise))


def test_temperature_zero_ignores_noise_and_cuts():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    for config in (SamplingConfig(temperature=0), SamplingConfig(temperature=0, top_k=2, top_p=0.5)):
        assert {int(choose_token(logits, torch.tensor([seed]), 0, config)) for seed in range(20)} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0, expected a whole number"),
        ({"top_k": 0.9}, r"top_k is 0\.9, expected a whole number"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"guidance_scale": -1.0}, r"guidance_scale is -1\.0"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)
