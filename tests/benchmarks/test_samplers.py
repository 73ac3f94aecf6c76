"""What is timed of ours and of others, and what a step of it must read."""

import importlib.util

import pytest
import torch

from benchmarks import samplers
from benchmarks.prior_contestants import QUICK, Batch, dalle_text, make_dalle, make_llama, make_ours, n_parameters
from benchmarks.samplers import CachedDalle, Case, Draw, Llama, Ours, Uncached, line_up, prepare_ours
from benchmarks.step_bytes import image_keys, llama_bytes, prior_bytes
from kernels.patterns import dense_mask
from transformer.decoding import UNKNOWN
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


def test_a_warm_up_draws_the_last_tokens_only():
    ours = Ours(CASE, prepare_ours(QUICK, "float32", "cpu"), SamplingConfig(), compile=False)
    options = {}
    ours.sample = lambda **kwargs: options.update(kwargs)
    ours.warm_up()
    (given,) = options.values()
    assert torch.equal(given.flatten(1)[:, :-4], ours.batch.image_tokens.flatten(1)[:, :-4])
    assert (given.flatten(1)[:, -4:] == UNKNOWN).all()


def test_ours_are_drawn_with_and_without_guidance():
    found = line_up("ours", CASE)
    assert [(ours.config.guided, ours.compile) for ours in found.values()] == [(False, True), (True, True)]
    plain, guided = found.values()
    assert plain.prior is guided.prior
    weights = prior_bytes(plain.prior, 0, 0, 4)
    row, text = (prior_bytes(plain.prior, *of, 4) - weights for of in ((1, 0), (0, 1)))
    # Two pictures of two captions; guided, two more rows that share one more text.
    assert plain.bytes_per_step() == pytest.approx(weights + 2 * row + 2 * text)
    assert guided.bytes_per_step() == pytest.approx(weights + 4 * row + 3 * text)
    (eager,) = line_up("ours, not compiled", CASE).values()
    assert not eager.compile


def test_narrow_weights_have_a_narrow_cache():
    case = Case(sizes=QUICK, batch=2, dtype="int8", device="cpu")
    (compiled, _), (eager,) = (line_up(name, case).values() for name in ("ours", "ours, not compiled"))
    expected = prior_bytes(compiled.prior, 2, 2, 2)
    assert eager.bytes_per_step() == compiled.bytes_per_step() == pytest.approx(expected)
    assert expected < prior_bytes(compiled.prior, 2, 2, 4)


def test_a_pass_a_token_is_estimated_from_three_lengths(monkeypatch):
    """A cost of 1 + n^2 at length n, of which Simpson's rule has the integral."""
    uncached = Uncached(CASE)
    monkeypatch.setattr(uncached, "lengths", lambda: (0, 32, 64))
    monkeypatch.setattr(uncached, "time_step", lambda length: 1.0 + length**2)
    assert uncached.draw() == Draw(pytest.approx(64 * (1 + 64**2 / 3)), 1.0, 1, 64)
    assert uncached.step(63).shape == (2,)


def test_keys_and_weights_of_a_step_by_hand():
    prior = make_ours(QUICK)
    rows = [dense_mask(pattern)[16:-1, 16:].sum() / 63 for pattern in prior.patterns]
    assert image_keys(prior.patterns) == pytest.approx(float(sum(rows)))
    # Five blocks of a packed qkv, an output, two gains of heads, SwiGLU of 192, two norms; a norm; 128 codes.
    hidden = 192
    block = 64 * 3 * 64 + 64 * 64 + 2 * 32 + 64 * 2 * hidden + hidden * 64 + 2 * 64
    key = 2 * 64 * 4
    keys = 3 * image_keys(prior.patterns) + 2 * 16 * 5
    assert prior_bytes(prior, 3, 2, 4) == pytest.approx(4 * (5 * block + 64 + 128 * 64) + keys * key)
    assert prior_bytes(prior.bfloat16(), 0, 0, 2) == 2 * (5 * block + 64 + 128 * 64)
    # In int8 the matrices are a quarter, with a float32 scale a row; gains and norms stay.
    rows = 5 * (3 * 64 + 64 + 2 * hidden + 64) + 128
    gains = 5 * (2 * 32 + 2 * 64) + 64
    assert prior_bytes(prepare_ours(QUICK, "int8", "cpu"), 0, 0, 2) == 5 * block + 64 + 128 * 64 + 3 * gains + 4 * rows


@needs_llama
def test_the_llama_is_as_large_and_draws_whole_pictures():
    llama = Llama(CASE, None, compiled=False)
    prior = make_ours(QUICK)
    in_a_step = llama_bytes(llama.model, 16, 64, 0) / 4
    assert in_a_step == pytest.approx(prior_bytes(prior, 0, 0, 4) / 4, rel=2e-3)  # no gains of heads
    assert llama_bytes(llama.model, 16, 64, 3) - 4 * in_a_step == pytest.approx(
        3 * 2 * 64 * 4 * 5 * sum(range(17, 80)) / 63
    )
    assert llama.prompt.shape == (2, 16)
    llama.warm_up()
    assert llama._generate(7).tokens == 7
    draw = llama.draw()
    assert (draw.tokens, draw.first) == (64, 1) and 0 < draw.first_s < draw.total_s


@needs_llama
def test_a_static_caches_steps_are_alike(monkeypatch):
    monkeypatch.setattr(samplers, "STATIC_TOKENS", 5)
    llama = Llama(CASE, "static", compiled=False)
    monkeypatch.setattr(llama, "_generate", lambda tokens: Draw(3.0 + (tokens - 1) * 2.0, 3.0, 1, tokens))
    assert llama.estimated and llama.draw() == Draw(3.0 + 63 * 2.0, 3.0, 1, 64)
    assert not Llama(CASE, None, compiled=False).estimated


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
