"""What is timed of ours and of others, and what a step of it must read."""

import importlib.util

import pytest
import torch

from benchmarks.prior_contestants import QUICK, Batch, dalle_text, make_dalle, make_llama, make_ours, n_parameters
from benchmarks.samplers import CachedDalle, Case, Draw, Llama, Ours, Uncached, line_up, prepare_ours
from benchmarks.step_bytes import keys_of_a_step, llama_bytes, prior_bytes
from kernels.patterns import dense_mask
from transformer.sampling import SamplingConfig

CASE = Case(sizes=QUICK, batch=2, dtype="float32", device="cpu")
HERE = {name: importlib.util.find_spec(name) is not None for name in ("transformers", "dalle_pytorch")}
needs_llama = pytest.mark.skipif(not HERE["transformers"], reason="transformers is not installed")
needs_dalle = pytest.mark.skipif(
    not (HERE["dalle_pytorch"] and importlib.util.find_spec("rotary_embedding_torch")),
    reason="dalle-pytorch or rotary-embedding-torch is not installed",
)


def test_steps_are_those_after_the_first_tokens():
    assert Draw(total_s=5.0, first_s=1.0, first=4, tokens=12).ms_per_step == 500


def test_a_draw_of_ours_knows_when_the_first_tokens_were_there(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    ours = Ours(CASE, prepare_ours(QUICK, "float32", "cpu"), SamplingConfig(), compile=False)
    draw = ours.draw()
    assert draw.first_s == 1 and draw.total_s == 2  # three readings: start, first tokens, end
    assert 1 <= draw.first < draw.tokens == 64


def test_ours_are_drawn_with_and_without_guidance():
    samplers = line_up("ours", CASE)
    assert [sampler.config.guided for sampler in samplers.values()] == [False, True, False]
    assert [sampler.compile for sampler in samplers.values()] == [True, True, False]
    plain, guided, _ = (sampler.bytes_per_step() for sampler in samplers.values())
    weights = prior_bytes(samplers["ours"].prior, 0, 4)
    assert guided - weights == pytest.approx(2 * (plain - weights))


def test_a_pass_a_token_is_estimated_from_three_lengths(monkeypatch):
    """A cost of 1 + n^2 at length n, of which Simpson's rule has the integral."""
    uncached = Uncached(CASE)
    monkeypatch.setattr(uncached, "lengths", lambda: (0, 32, 64))
    monkeypatch.setattr(uncached, "time_step", lambda length: 1.0 + length**2)
    assert uncached.draw() == Draw(pytest.approx(64 * (1 + 64**2 / 3)), 1.0, 1, 64)
    assert uncached.step(63).shape == (2,)


def test_keys_and_weights_of_a_step_by_hand():
    prior = make_ours(QUICK)
    rows = [dense_mask(pattern)[16:-1].sum() / 63 for pattern in prior.patterns]
    assert keys_of_a_step(prior.patterns) == pytest.approx(float(sum(rows)))
    # Five blocks of a packed qkv, an output, two gains of heads, SwiGLU of 192, two norms; a norm; 128 codes.
    hidden = 192
    block = 64 * 3 * 64 + 64 * 64 + 2 * 32 + 64 * 2 * hidden + hidden * 64 + 2 * 64
    keys = 2 * 64 * 4 * keys_of_a_step(prior.patterns)
    assert prior_bytes(prior, 3, 4) == pytest.approx(4 * (5 * block + 64 + 128 * 64) + 3 * keys)
    assert prior_bytes(prior.bfloat16(), 0, 2) == 2 * (5 * block + 64 + 128 * 64)


@needs_llama
def test_the_llama_is_as_large_and_draws_whole_pictures():
    llama = Llama(CASE, None, compiled=False)
    prior = make_ours(QUICK)
    in_a_step = llama_bytes(llama.model, 16, 64, 0) / 4
    assert in_a_step == pytest.approx(prior_bytes(prior, 0, 4) / 4, rel=2e-3)  # no gains of heads
    assert llama_bytes(llama.model, 16, 64, 3) - 4 * in_a_step == pytest.approx(
        3 * 2 * 64 * 4 * 5 * sum(range(17, 80)) / 63
    )
    assert llama.prompt.shape == (2, 16)
    llama.warm_up()
    assert llama._generate(7).tokens == 7
    draw = llama.draw()
    assert (draw.tokens, draw.first) == (64, 1) and 0 < draw.first_s < draw.total_s


@needs_llama
def test_a_llama_has_one_vocabulary():
    assert make_llama(QUICK, 300).lm_head.weight.shape == (300, 64)


@needs_dalle
def test_the_dalle_sees_what_we_see_and_its_cache_changes_nothing():
    batch, dalle = Batch.random(QUICK, 2, "cpu"), make_dalle(QUICK, with_cache=True).eval()
    text, image = dalle_text(batch), batch.image_tokens.flatten(1)
    assert text.shape == (2, 16) and text.min() > 0
    assert n_parameters(dalle) == sum(p.numel() for p in dalle.parameters()) - sum(
        p.numel() for p in dalle.vae.parameters()
    )
    cache = {}
    with torch.no_grad():  # token by token, as it is not exact where it starts from several image tokens
        found = [dalle(text, image[:, :n], cache=cache)[:, -1] for n in range(5)]
        torch.testing.assert_close(found[-1], dalle(text, image[:, :4])[:, -1])


@needs_dalle
@pytest.mark.parametrize("name", ["DALLE-pytorch", "DALLE-pytorch, its cache"])
def test_a_dalle_is_timed(name):
    (sampler,) = line_up(name, CASE).values()
    tokens = sampler.step(5)
    assert tokens.shape == (2,) and tokens.min() >= 0 and tokens.max() < QUICK.codebook_size
    sampler.warm_up()
    assert sampler.draw().total_s > 0 and sampler.estimated


@needs_dalle
def test_with_its_cache_a_picture_is_the_captions_pass_and_one_step_a_token(monkeypatch):
    cached = CachedDalle(CASE)
    monkeypatch.setattr(cached, "time_step", lambda length: 10.0 if length == 0 else 2.0)
    assert cached.draw() == Draw(10.0 + 2 * 63, 10.0, 1, 64)
