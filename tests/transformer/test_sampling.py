import math
from dataclasses import asdict

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from transformer import decoding, sampling
from transformer.decoding import decode_step, generate
from transformer.noise import exponential_noise
from transformer.sampling import (
    SamplingConfig,
    SamplingTensors,
    choose_token,
    guide,
    sample_token,
    scheduled_scale,
    warp_logits,
)


def on_cpu(**settings) -> SamplingTensors:
    return SamplingConfig(**settings).tensors(torch.device("cpu"))


class _NoFloat64(TorchDispatchMode):
    """Refuses float64 on all devices but the CPU, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "cpu" and result.dtype == torch.float64:
            raise TypeError(f"float64 on {result.device}")
        return result


@pytest.mark.parametrize(
    "settings", [{}, {"guidance_scale": 2.0, "guidance_schedule": "linear", "top_k": 3, "top_p": 0.9, "min_p": 0.1}]
)
def test_devices_without_float64_draw_on_the_cpu(monkeypatch, settings):
    """On a made-up device; MPS itself is there on Apple's computers only."""
    config = SamplingConfig(**settings)
    with FakeTensorMode(), _NoFloat64():
        logits = torch.zeros(4 if config.guided else 2, 8, device="cuda")
        seeds = torch.zeros(2, dtype=torch.int64, device="cuda")
        index = torch.tensor(3, device="cuda")
        with pytest.raises(TypeError, match="float64 on cuda"):
            choose_token(logits, seeds, index, 12, config.tensors(logits.device))
        monkeypatch.setattr(sampling, "WITHOUT_FLOAT64", (*sampling.WITHOUT_FLOAT64, "cuda"))
        token = choose_token(logits, seeds, index, 12, config.tensors(logits.device))
    assert (token.shape, token.dtype, token.device.type) == ((2,), torch.int64, "cuda")


def test_guidance_ends():
    cond, null = torch.randn(2, 4, 7)
    torch.testing.assert_close(guide(cond, null, 1.0), cond)
    torch.testing.assert_close(guide(cond, null, 0.0), null)
    torch.testing.assert_close(guide(cond, null, 3.0), cond + 2 * (cond - null))


def scale(index: int, schedule: str, image_len: int = 5, guidance_scale: float = 3.0) -> float:
    settings = on_cpu(guidance_scale=guidance_scale, guidance_schedule=schedule)
    return float(scheduled_scale(settings, torch.tensor(index), image_len))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [3, 3, 3, 3, 3]),
        ("linear", [1, 1.5, 2, 2.5, 3]),
        ("cosine", [1, 2 - math.sqrt(0.5), 2, 2 + math.sqrt(0.5), 3]),
    ],
)
def test_scales_by_hand(schedule, expected):
    assert [scale(index, schedule) for index in range(5)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_may_lead_away_from_the_caption_and_a_picture_be_one_token(schedule):
    assert [scale(index, schedule, guidance_scale=0.0) for index in (0, 2, 4)] == pytest.approx([1, 0.5, 0], abs=1e-6)
    assert scale(0, schedule, image_len=1) == 3.0


def test_a_token_is_guided_by_the_scale_of_its_place():
    """Code 1 overtakes code 0 where the scale is above 2; code 2 is what the null caption alone would take."""
    cond, null = torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[3.0, -1.0, 5.0]])

    def tokens(schedule: str) -> list[int]:
        settings = on_cpu(temperature=0, guidance_scale=3.4, guidance_schedule=schedule)
        logits = torch.cat([cond, null])
        return [int(choose_token(logits, torch.zeros(1).long(), torch.tensor(i), 6, settings)) for i in range(6)]

    assert tokens("constant") == [1] * 6
    assert tokens("linear") == [0, 0, 0, 1, 1, 1]  # 1, 1.48, 1.96, 2.44, ...
    assert tokens("cosine") == [0, 0, 0, 1, 1, 1]  # 1, 1.23, 1.83, 2.57, ...


SETTINGS = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"guidance_scale": 2.0},
    {"guidance_scale": 2.0, "guidance_schedule": "linear"},
    {"guidance_scale": 2.0, "guidance_schedule": "cosine"},
    {"temperature": 1.2, "top_k": 9, "top_p": 0.9, "min_p": 0.1, "guidance_scale": 3.0, "guidance_schedule": "cosine"},
]


def test_every_setting_is_compiled_in_some_test():
    usual = asdict(SamplingConfig())
    assert {name for settings in SETTINGS for name in settings if settings[name] != usual[name]} == usual.keys()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings) or "usual")
def test_one_graph_for_all_positions_draws_as_without_a_compiler(settings):
    """No value of a tensor is asked for; neither the position nor another temperature, scale or cut of the same kind
    makes another graph."""
    torch.manual_seed(0)
    seeds, factors = torch.arange(64), (1, 1.1, 0.9, 0.8)
    numbers = [name for name in settings if isinstance(settings[name], float)]
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(choose_token, backend=counter, fullgraph=True, dynamic=False)
    drawn = []
    for index, factor in enumerate(factors):
        varied = on_cpu(**settings | {name: factor * settings[name] for name in numbers})
        logits = 2 * torch.randn(128 if varied.guided else 64, 13)
        drawn.append(choose_token(logits, seeds, torch.tensor(index), 12, varied))
        assert torch.equal(compiled(logits, seeds, torch.tensor(index), 12, varied), drawn[-1])
    assert counter.frame_count == 1
    assert torch.stack(drawn).unique().numel() > 5, "they are to differ, or the test shows nothing"


def test_the_whole_step_is_one_graph_with_all_of_them(make_prior, make_batch, monkeypatch):
    prior, (text_tokens, _) = make_prior(n_layer=2), make_batch(3)
    inputs = {"seeds": torch.arange(3), "config": SamplingConfig(**SETTINGS[-1])}
    expected = generate(prior, text_tokens, **inputs)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    step = torch.compile(decode_step, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr(decoding, "_compiled_step", step)
    assert torch.equal(generate(prior, text_tokens, **inputs, compile=True), expected)
    assert counter.frame_count == 1


def probabilities(logits: list[float], **settings) -> list[float]:
    return warp_logits(torch.tensor([logits]), on_cpu(**settings)).softmax(dim=-1)[0].tolist()


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
        ({"top_p": 1e-50}, [0, 1, 0, 0]),  # which float32 has no number for
        ({"top_p": 1.0}, [1 / 8, 4 / 8, 1 / 8, 2 / 8]),
        # Top-p works on what top-k leaves: 4/6 and 2/6, of which the first alone reaches 0.6.
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),
        ({"min_p": 0.2}, [1 / 8, 4 / 8, 1 / 8, 2 / 8]),
        ({"min_p": 0.3}, [0, 4 / 6, 0, 2 / 6]),
        ({"min_p": 0.6}, [0, 1, 0, 0]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        # After the temperature, which makes the second a quarter as likely as the first, or 0.71 times.
        ({"temperature": 0.5, "min_p": 0.3}, [0, 1, 0, 0]),
        ({"temperature": 2.0, "min_p": 0.6}, [0, math.sqrt(2) / (1 + math.sqrt(2)), 0, 1 / (1 + math.sqrt(2))]),
        # After top-p, which keeps two; of what min-p leaves, 4/6 and 2/6, the first alone would reach 0.6.
        ({"top_p": 0.6, "min_p": 0.3}, [0, 4 / 6, 0, 2 / 6]),
    ],
)
def test_warped_distributions_by_hand(settings, expected):
    assert probabilities(EIGHTHS, **settings) == pytest.approx(expected, abs=1e-6)


def test_whole_numbers_are_settings_as_any_other():
    tensors = on_cpu(temperature=2, top_p=1e-3, min_p=1, guidance_scale=3)
    for number in (tensors.temperature, tensors.top_p, tensors.log_min_p, tensors.guidance_scale):
        assert number.dtype == torch.float32
    assert probabilities(EIGHTHS, temperature=2) == probabilities(EIGHTHS, temperature=2.0)


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
    for settings in (on_cpu(temperature=0), on_cpu(temperature=0, top_k=2, top_p=0.5)):
        drawn = {int(choose_token(logits, torch.tensor([seed]), torch.tensor(0), 12, settings)) for seed in range(20)}
        assert drawn == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 1e-40}, r"temperature is 1e-40, expected 0 or 1e-06 to 1e\+06"),
        ({"top_k": 0}, "top_k is 0, expected a whole number"),
        ({"top_k": 0.9}, r"top_k is 0\.9, expected a whole number"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": 0.0}, r"min_p is 0\.0, expected more than 0"),
        ({"min_p": 1.1}, r"min_p is 1\.1"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"guidance_scale": -1.0}, r"guidance_scale is -1\.0"),
        ({"guidance_scale": math.inf}, r"guidance_scale is inf, expected 0 to 1e\+06"),
        ({"guidance_schedule": "cosin"}, "guidance_schedule is 'cosin', expected one of constant, linear, cosine"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)
