import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kernels import step
from kernels.patterns import Pattern
from transformer import decoding
from transformer.cache import KVCache
from transformer.decoding import UNKNOWN, decode_tokens, generate, prefill_text
from transformer.embeddings import null_captions
from transformer.likelihood import image_log_likelihood, null_image_log_likelihood
from transformer.sampling import SamplingConfig
from transformer.serving import WEIGHTS, cache_dtype, for_decoding

BLOCKS = pytest.mark.parametrize("block", ["paper", "modern"])
PADS = pytest.mark.parametrize("attend_pads", [True, False])


@torch.no_grad()
def decoded_logits(prior, text_tokens, image_tokens, start: int = 0) -> torch.Tensor:
    """Logits of the image tokens from `start` on by the cache, each earlier token given: (B, h * w - start, K)."""
    rows = torch.arange(len(text_tokens))
    cache, prefix_lengths = KVCache(prior.patterns, rows, len(rows)), prior.prefix_lengths(text_tokens)
    flat = image_tokens.flatten(1)
    logits = [prefill_text(prior, text_tokens, cache)]
    if start:
        logits = [decode_tokens(prior, flat[:, :start], 0, cache, prefix_lengths)]
    for index in range(start, flat.shape[1] - 1):
        logits.append(decode_tokens(prior, flat[:, [index]], index, cache, prefix_lengths))
    return torch.stack(logits, dim=1)


@torch.no_grad()
def exact_logits(prior, text_tokens, image_tokens) -> torch.Tensor:
    """Of the full forward pass in float64: (B, h * w, K)."""
    return copy.deepcopy(prior).double()(text_tokens, image_tokens).image_logits


def assert_equal(decoded, exact) -> None:
    torch.testing.assert_close(decoded.double(), exact, atol=1e-5, rtol=1e-5)


@BLOCKS
@PADS
@pytest.mark.parametrize("conv_wrap", ["linear", "clamped", "modulo"])
def test_cache_equals_the_full_forward_pass(make_prior, make_batch, block, attend_pads, conv_wrap):
    """At every position of the picture, through row, column and conv layers."""
    prior = make_prior(block=block, attend_pads=attend_pads, conv_wrap=conv_wrap)
    text_tokens, image_tokens = make_batch(5)
    expected = exact_logits(prior, text_tokens, image_tokens)
    assert_equal(decoded_logits(prior, text_tokens, image_tokens), expected)


@pytest.fixture
def tall(make_prior):
    """A prior of one mask on 9x3 tokens, where a row layer's cache keeps 4 of the 27, and a batch for it."""

    def make(kind: str, conv_wrap: str, attend_pads: bool = True):
        prior = make_prior(attend_pads=attend_pads, n_layer=3, grid_size=(9, 3), conv_wrap=conv_wrap)
        prior.patterns = [prior.config.pattern(kind)] * 3
        text_tokens = torch.tensor([[4, 7, 1, 0, 3], [9, 2, 5, -1, -1], [-1] * 5])
        return prior, text_tokens, torch.randint(0, 13, (3, 9, 3))

    return make


EVERY_MASK = pytest.mark.parametrize(
    ("kind", "conv_wrap"),
    [("causal", "linear"), ("row", "linear"), ("column", "linear")]
    + [("conv", wrap) for wrap in ("linear", "clamped", "modulo")],
)


@EVERY_MASK
@PADS
def test_cache_equals_the_full_forward_pass_for_each_mask(tall, kind, conv_wrap, attend_pads):
    """Where the short caches are overwritten four times and more."""
    prior, text_tokens, image_tokens = tall(kind, conv_wrap, attend_pads)
    expected = exact_logits(prior, text_tokens, image_tokens)
    assert_equal(decoded_logits(prior, text_tokens, image_tokens), expected)


@EVERY_MASK
@pytest.mark.parametrize("start", [4, 8, 20])
def test_a_given_beginning_may_be_longer_than_the_cache(tall, kind, conv_wrap, start):
    prior, text_tokens, image_tokens = tall(kind, conv_wrap)
    expected = exact_logits(prior, text_tokens, image_tokens)[:, start:]
    decoded = decoded_logits(prior, text_tokens, image_tokens, start)
    assert_equal(decoded, expected)


@pytest.mark.parametrize(("kind", "conv_wrap"), [("row", "linear"), ("conv", "linear"), ("conv", "modulo")])
def test_a_cache_one_key_too_short_is_caught(tall, kind, conv_wrap, monkeypatch):
    """The planted fault is refused; and where nothing refuses it, the logits are off from the first overwriting on."""
    prior, text_tokens, image_tokens = tall(kind, conv_wrap)
    expected = exact_logits(prior, text_tokens, image_tokens)
    kept = prior.patterns[0].ring_len
    monkeypatch.setattr(Pattern, "ring_len", property(lambda self: self.reach))
    with pytest.raises(ValueError, match=f"against {kept - 1} image keys, expected at least {kept}"):
        decoded_logits(prior, text_tokens, image_tokens)
    monkeypatch.setattr(step, "check_ring", lambda *args: None)
    wrong = (decoded_logits(prior, text_tokens, image_tokens) - expected).abs().amax(dim=(0, 2)) > 1e-3
    assert wrong.nonzero().flatten()[0] == kept


@BLOCKS
@PADS
@pytest.mark.parametrize("start", [1, 5, 11])
def test_prefill_takes_in_a_given_beginning(make_prior, make_batch, block, attend_pads, start):
    prior = make_prior(block=block, attend_pads=attend_pads)
    text_tokens, image_tokens = make_batch(3)
    expected = exact_logits(prior, text_tokens, image_tokens)[:, start:]
    decoded = decoded_logits(prior, text_tokens, image_tokens, start)
    assert_equal(decoded, expected)


@pytest.mark.parametrize("attend_pads", [True, False])
def test_cache_by_triton_equals_the_full_forward_pass(tall, monkeypatch, attend_pads):
    """The steps as a GPU takes them, in Triton's interpreter where there is none."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    from kernels import decode

    prior, text_tokens, image_tokens = tall("row", "modulo", attend_pads)
    prior.patterns = [prior.config.pattern(kind) for kind in ("row", "column", "conv")]
    expected = exact_logits(prior, text_tokens, image_tokens)[:, 20:]
    steps = []
    monkeypatch.setattr(step, "suits_triton", lambda q: True)
    monkeypatch.setattr(decode, "run_step", lambda *args, run=decode.run_step: steps.append(1) or run(*args))
    decoded = decoded_logits(prior, text_tokens, image_tokens, 20)
    assert len(steps) == 6 * 3
    assert_equal(decoded, expected)


def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass(make_prior, make_batch):
    prior = make_prior()
    text_tokens, _ = make_batch(3)
    config = SamplingConfig(temperature=0)
    tokens = generate(prior, text_tokens, seeds=torch.arange(3), config=config)
    assert torch.equal(prior(text_tokens, tokens).image_logits.argmax(dim=-1), tokens.flatten(1))


def test_guided_tokens_are_drawn_from_the_guided_full_forward_pass(make_prior, make_batch):
    prior = make_prior()
    text_tokens, _ = make_batch(3)
    config = SamplingConfig(temperature=0, guidance_scale=2.5)
    tokens = generate(prior, text_tokens, seeds=torch.arange(3), config=config)
    cond = prior(text_tokens, tokens).image_logits
    null = prior(null_captions(3, 6), tokens).image_logits
    assert torch.equal((null + 2.5 * (cond - null)).argmax(dim=-1), tokens.flatten(1))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("compile", [False, True])
def test_a_picture_is_the_same_alone_and_in_a_large_batch(make_prior, make_batch, monkeypatch, weights, compile):
    """Of more rows than a CPU multiplies one by one."""
    compiled = torch.compile(decoding.decode_step, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(decoding, "_compiled_step", compiled)
    prior, text_tokens = for_decoding(make_prior(n_layer=2), weights), make_batch(5)[0][torch.arange(12) % 5]
    options = {"config": SamplingConfig(guidance_scale=3.0), "compile": compile}
    likelihoods, alone = torch.zeros(12, 3), torch.zeros(12, 1, 3)
    together = generate(prior, text_tokens, seeds=torch.arange(12), likelihoods=likelihoods, **options)
    for row in range(12):
        options |= {"seeds": torch.tensor([row]), "likelihoods": alone[row]}
        assert torch.equal(generate(prior, text_tokens[[row]], **options)[0], together[row])
    near = 1e-4 if weights == "float32" else 1e-2  # what a narrow cache rounds may fall to either side
    torch.testing.assert_close(alone[:, 0], likelihoods, atol=near, rtol=0)


@BLOCKS
def test_a_picture_is_a_function_of_its_own_seed(make_prior, make_batch, block):
    """Alone, in a batch of five, in another order: the same."""
    prior = make_prior(block=block)
    text_tokens, _ = make_batch(5)
    seeds = torch.tensor([3, 1, 4, 1, -5])
    config = SamplingConfig(guidance_scale=1.5, top_k=9, top_p=0.95)
    together = generate(prior, text_tokens, seeds=seeds, config=config)
    assert together.shape == (5, 4, 3)
    for row in range(5):
        alone = generate(prior, text_tokens[row : row + 1], seeds=seeds[row : row + 1], config=config)
        assert torch.equal(alone[0], together[row])
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.equal(generate(prior, text_tokens[order], seeds=seeds[order], config=config), together[order])


def test_other_seeds_give_other_pictures(make_prior, make_batch):
    prior = make_prior()
    text_tokens = make_batch(1)[0].expand(8, -1)
    tokens = generate(prior, text_tokens, seeds=torch.arange(8), config=SamplingConfig())
    assert len({tuple(picture.flatten().tolist()) for picture in tokens}) == 8


def first_given(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """The first tokens of pictures (B, h, w) in raster order; UNKNOWN behind them."""
    return tokens.flatten(1).where(torch.arange(tokens[0].numel()) < count, UNKNOWN).view_as(tokens)


def test_given_tokens_stay_and_the_rest_goes_on_from_them(make_prior, make_batch):
    prior = make_prior()
    text_tokens, _ = make_batch(3)
    seeds, config = torch.arange(3), SamplingConfig(guidance_scale=2.0)
    whole = generate(prior, text_tokens, seeds=seeds, config=config)
    for count in (0, 1, 7, 12):
        given = first_given(whole, count)
        again = generate(prior, text_tokens, seeds=seeds, config=config, given=given)
        assert torch.equal(again, whole)  # the noise of a position does not depend on where sampling began
    other = (whole + 1) % 13
    completed = generate(prior, text_tokens, seeds=seeds, config=config, given=first_given(other, 7))
    assert torch.equal(first_given(completed, 7), first_given(other, 7))


def test_progress_counts_tokens(make_prior, make_batch):
    calls = []
    text_tokens, image_tokens = make_batch(2)
    generate(
        make_prior(),
        text_tokens,
        seeds=torch.arange(2),
        config=SamplingConfig(),
        given=first_given(image_tokens, 9),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(9, 12), (10, 12), (11, 12), (12, 12)]


def test_without_guidance_no_null_rows_are_run(make_prior, make_batch, monkeypatch):
    prior = make_prior()
    text_tokens, _ = make_batch(2)
    rows = []
    monkeypatch.setattr(
        prior.embedding, "text", lambda tokens, text=prior.embedding.text: rows.append(len(tokens)) or text(tokens)
    )
    for scale in (1.0, 2.0):
        generate(prior, text_tokens, seeds=torch.arange(2), config=SamplingConfig(guidance_scale=scale))
    assert rows == [2, 3]  # one without a caption serves all


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_tokens": torch.zeros(2, 6).long()}, r"text_tokens are \(2, 6\)"),
        ({"text_tokens": torch.zeros(0, 5).long()}, r"text_tokens are \(0, 5\), expected at least one caption"),
        ({"text_tokens": torch.full((2, 5), 11)}, "text_tokens hold ids from 11 to 11, expected -1 to 10"),
        ({"text_tokens": torch.full((2, 5), -2)}, "text_tokens hold ids from -2"),
        ({"seeds": torch.arange(3)}, r"seeds are \(3,\) torch.int64, expected \(2,\)"),
        ({"seeds": torch.rand(2)}, "torch.float32"),
        ({"given": torch.zeros(2, 12).long()}, r"given tokens are \(2, 12\), expected \(2, 4, 3\)"),
        ({"given": torch.full((2, 4, 3), 13)}, "hold ids from 13 to 13, expected -1 to 12"),
        ({"given": torch.full((2, 4, 3), -2)}, "hold ids from -2"),
    ],
)
def test_impossible_inputs_are_refused(make_prior, make_batch, changes, message):
    inputs = {"text_tokens": make_batch(2)[0], "seeds": torch.arange(2), "config": SamplingConfig()} | changes
    with pytest.raises(ValueError, match=message):
        generate(make_prior(), inputs.pop("text_tokens"), **inputs)


def test_samples_of_a_caption_share_its_text(make_prior, make_batch, monkeypatch):
    """Two captions, three samples each: two texts are computed, their keys are kept twice, and nothing changes."""
    prior = make_prior()
    text_tokens = make_batch(2)[0].repeat_interleave(3, dim=0)
    seeds, config = torch.arange(6), SamplingConfig(guidance_scale=2.0)
    alone = [generate(prior, text_tokens[[i]], seeds=seeds[[i]], config=config)[0] for i in range(6)]
    texts, caches = [], []
    monkeypatch.setattr(prior.embedding, "text", lambda t, text=prior.embedding.text: texts.append(len(t)) or text(t))
    monkeypatch.setattr(decoding, "KVCache", lambda *args: caches.append(KVCache(*args)) or caches[-1])
    together = generate(prior, text_tokens, seeds=seeds, config=config)
    assert torch.equal(together, torch.stack(alone))
    assert texts == [3]  # with that of no caption
    assert caches[0].text[0].k.shape[0] == 4
    assert caches[0].image[0].k.shape[0] == 12


@pytest.mark.parametrize("repeats", [[3, 1], [2, 4], [1, 1, 1], [6]])
def test_captions_may_repeat_unequally_often(make_prior, make_batch, repeats):
    prior = make_prior(attend_pads=False)
    text_tokens = make_batch(len(repeats))[0].repeat_interleave(torch.tensor(repeats), dim=0)
    seeds, config = torch.arange(len(text_tokens)), SamplingConfig(guidance_scale=1.5)
    together = generate(prior, text_tokens, seeds=seeds, config=config)
    for i in range(len(text_tokens)):
        alone = generate(prior, text_tokens[[i]], seeds=seeds[[i]], config=config)
        assert torch.equal(alone[0], together[i])


def test_any_region_may_be_given(make_prior, make_batch):
    """Another region in each picture; each drawn token knows all tokens before it, drawn or given, and no others."""
    prior = make_prior()
    text_tokens, image_tokens = make_batch(3)
    keep = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    given = image_tokens.where(keep, UNKNOWN)
    found = generate(prior, text_tokens, seeds=torch.arange(3), config=SamplingConfig(temperature=0), given=given)
    assert torch.equal(found[keep], image_tokens[keep])
    best = prior(text_tokens, found).image_logits.argmax(dim=-1).view_as(found)
    assert torch.equal(found[~keep], best[~keep])


def test_rows_are_told_as_they_are_drawn(make_prior, make_batch):
    seen = []
    text_tokens, _ = make_batch(2)
    tokens = generate(
        make_prior(),
        text_tokens,
        seeds=torch.arange(2),
        config=SamplingConfig(),
        after_row=lambda so_far: seen.append(so_far.clone()),
    )
    assert len(seen) == 4
    for rows, so_far in enumerate(seen, start=1):
        assert torch.equal(so_far, first_given(tokens, 3 * rows))


def test_one_graph_draws_every_token(make_prior, make_batch, monkeypatch):
    """Compiled without a break and once, guided and not, whatever the temperature and the scale; what it draws is what
    the plain step draws."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(decoding.decode_step, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr(decoding, "_compiled_step", compiled)
    prior = for_decoding(make_prior())
    text_tokens, _ = make_batch(3)
    for scale, temperature, count in ((1.0, 1.0, 1), (1.0, 0.8, 1), (2.0, 1.0, 2), (3.0, 0.7, 2)):
        config = SamplingConfig(guidance_scale=scale, temperature=temperature, top_k=9, top_p=0.9)
        options = {"seeds": torch.arange(3), "config": config}
        plain = generate(prior, text_tokens, **options)
        assert torch.equal(generate(prior, text_tokens, compile=True, **options), plain)
        assert torch.equal(generate(prior, text_tokens, compile=True, given=first_given(plain, 5), **options), plain)
        assert counter.frame_count == count


@pytest.mark.parametrize("attend_pads", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("compile", [False, True])
def test_what_is_drawn_is_weighed(make_prior, make_batch, monkeypatch, attend_pads, scale, compile):
    """By the probabilities of whole passes over what was drawn, in batches with tokens given here and there."""
    compiled = torch.compile(decoding.decode_step, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(decoding, "_compiled_step", compiled)
    prior = for_decoding(make_prior(attend_pads=attend_pads))
    text_tokens, image_tokens = make_batch(4)
    for drawn in (torch.ones(4, 4, 3, dtype=torch.bool), torch.rand(4, 4, 3) < 0.6):
        options = {
            "seeds": torch.arange(4),
            "config": SamplingConfig(guidance_scale=scale, temperature=0.8, top_k=12),
            "given": image_tokens.where(~drawn, UNKNOWN),
        }
        found = torch.zeros(4, 3)
        tokens = generate(prior, text_tokens, likelihoods=found, compile=compile, **options)
        assert torch.equal(tokens, generate(prior, text_tokens, **options)), "weighing changes nothing"
        logits = prior(text_tokens, tokens).image_logits.log_softmax(dim=-1)
        cond, null = image_log_likelihood(prior, text_tokens, tokens), null_image_log_likelihood(prior, tokens)
        expected = torch.stack([cond, null, (logits.exp() * logits).sum(dim=-1)], dim=-1)
        expected = (expected * drawn.flatten(1)[:, :, None]).sum(dim=1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_wrong_places_for_likelihoods(make_prior, make_batch):
    text_tokens, _ = make_batch(3)
    options = {"seeds": torch.arange(3), "config": SamplingConfig()}
    for likelihoods in (torch.zeros(3), torch.zeros(3, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"likelihoods are .*, expected \(3, 3\) torch.float32"):
            generate(make_prior(), text_tokens, likelihoods=likelihoods, **options)


@pytest.mark.parametrize(("weights", "near"), [("float32", 1e-5), ("int8", 0.02)])
@torch.no_grad()
def test_inductors_logits_are_the_plain_ones(make_prior, make_batch, weights, near):
    """The loops that a CPU gets, in a prior of one layer a mask. A narrow cache rounds what is nearly the same."""
    prior = for_decoding(make_prior(n_layer=3), weights)
    prior.patterns = [prior.config.pattern(kind) for kind in ("row", "column", "conv")]
    text_tokens, image_tokens = make_batch(2)
    compiled = torch.compile(decode_tokens, fullgraph=True, dynamic=False)
    caches = [KVCache(prior.patterns, torch.arange(2), 2, cache_dtype(prior)) for _ in range(2)]
    for cache in caches:
        prefill_text(prior, text_tokens, cache)
        decode_tokens(prior, image_tokens.flatten(1)[:, :1], 0, cache, None)
    for index in range(1, 11):
        token = image_tokens.flatten(1)[:, [index]]
        plain = decode_tokens(prior, token, torch.tensor(index), caches[0], None)
        found = compiled(prior, token, torch.tensor(index), caches[1], None)
        assert (found - plain).abs().max() <= near * plain.abs().max()
