import math

import pytest
import torch

from evaluation import nats
from evaluation.nats import measure, summary
from evaluation.timing import LayerClock
from tests.transformer.test_decoding import decoded_logits
from transformer.embeddings import null_captions
from transformer.likelihood import LogLikelihood


def batches_of(text_tokens, image_tokens, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(text_tokens.split(size), image_tokens.split(size), strict=True))


def drawn_nats(prior, text_tokens, image_tokens) -> torch.Tensor:
    """-log of the probability with which sampling draws each token: (B, h * w)."""
    logits = decoded_logits(prior, text_tokens, image_tokens).double()
    return -logits.log_softmax(dim=-1).gather(2, image_tokens.flatten(1)[..., None])[..., 0]


def test_of_a_prior_that_knows_nothing(make_prior, make_batch):
    prior = make_prior()
    with torch.no_grad():
        prior.text_head.weight.zero_()
        prior.image_head.weight.zero_()
    report = summary(measure(prior, batches_of(*make_batch(5), 2), LayerClock(prior)), pixels=48)
    for name, classes in {"image": 13, "null": 13, "text": 11}.items():
        for value in report[name]["nats_per_token"].values():
            assert value == pytest.approx(math.log(classes), rel=1e-6)
        assert report[name]["bits_per_token"]["value"] == pytest.approx(math.log2(classes), rel=1e-6)
        assert report[name]["perplexity"] == pytest.approx(classes, rel=1e-5)
    assert report["image"]["bits_per_picture"]["value"] == pytest.approx(12 * math.log2(13), rel=1e-6)
    assert report["image"]["bits_per_pixel"]["value"] == pytest.approx(math.log2(13) / 4, rel=1e-6)
    assert report["gain"]["nats_per_picture"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert report["gain"]["pictures_with_gain"] == 0
    assert report["text"]["tokens_per_caption"] == 13 / 5
    assert report["positions"] == [[round(math.log(13), 4)] * 3] * 4


def test_nats_beyond_all_bounds_have_figures_too(make_prior, make_batch):
    """As of a prior whose weights have grown beyond reason: perplexities that no float64 holds, pictures of NaN."""
    measured = measure(make_prior(), batches_of(*make_batch(5), 2), LayerClock(make_prior()))
    assert summary(measured, pixels=48)["not_finite"] == 0
    report = summary(measured._replace(image=torch.full((5,), 12 * 800.0, dtype=torch.float64)), pixels=48)
    assert report["image"]["nats_per_token"]["value"] == 800
    assert report["image"]["perplexity"] == math.inf
    assert report["not_finite"] == 0
    for name in ("text", "image", "null"):
        broken = getattr(measured, name).clone()
        broken[1] = math.nan
        report = summary(measured._replace(**{name: broken}), pixels=48)
        assert report["not_finite"] == 1
        assert math.isnan(report[name]["nats_per_token"]["value"]) and math.isnan(report[name]["perplexity"])


def test_figures_are_those_of_sampling(make_prior, make_batch):
    """Of pictures in batches of 2, 2 and 1: every one and every position counts alike."""
    prior, (text_tokens, image_tokens) = make_prior(), make_batch(5)
    with_caption = drawn_nats(prior, text_tokens, image_tokens)
    without = drawn_nats(prior, null_captions(5, 6), image_tokens)
    measured = measure(prior, batches_of(text_tokens, image_tokens, 2), LayerClock(prior))
    assert [rows for rows, _ in measured.seconds] == [2, 2, 1]
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(measured.image, with_caption.sum(dim=1), **close)
    torch.testing.assert_close(measured.null, without.sum(dim=1), **close)
    torch.testing.assert_close(measured.positions, with_caption.mean(dim=0).view(4, 3), **close)
    assert measured.text_tokens.tolist() == [5, 3, 0, 1, 4]
    report = summary(measured, pixels=64)
    assert report["image"]["nats_per_token"]["value"] == pytest.approx(with_caption.mean().item(), rel=1e-5)
    gain = (without - with_caption).sum(dim=1)
    assert report["gain"]["nats_per_picture"]["value"] == pytest.approx(gain.mean().item(), rel=1e-5, abs=1e-5)
    assert report["gain"]["bits_per_picture"]["value"] == pytest.approx(gain.mean().item() / math.log(2), abs=1e-5)
    assert report["gain"]["pictures_with_gain"] == (gain > 1e-6).double().mean().item()
    assert report["gain"]["nats_per_picture"]["low"] < gain.mean() < report["gain"]["nats_per_picture"]["high"]


def test_text_counts_by_tokens_not_by_captions(make_prior, make_batch):
    prior, (text_tokens, image_tokens) = make_prior(), make_batch(5)
    logits = prior(text_tokens, image_tokens).text_logits.double().log_softmax(dim=-1)
    expected = [-logits[b, i, id_].item() for b, row in enumerate(text_tokens) for i, id_ in enumerate(row) if id_ >= 0]
    report = summary(measure(prior, batches_of(text_tokens, image_tokens, 2), LayerClock(prior)), pixels=64)
    assert len(expected) == 13
    assert report["text"]["nats_per_token"]["value"] == pytest.approx(sum(expected) / 13, rel=1e-5)


def test_positions_one_off_are_caught(make_prior, make_batch, monkeypatch):
    """The planted fault: each place of the map holds its right neighbour's nats, or rows and columns are taken for
    each other. What the tests above compare with tells both."""
    prior, batch = make_prior(), make_batch(5)
    expected = drawn_nats(prior, *batch).mean(dim=0).view(4, 3)
    right = measure(prior, [batch], LayerClock(prior)).positions
    real = nats.log_likelihood
    monkeypatch.setattr(
        nats, "log_likelihood", lambda *args: LogLikelihood(real(*args).text, real(*args).image.roll(-1, 1))
    )
    wrong = measure(prior, [batch], LayerClock(prior)).positions
    assert (right - expected).abs().max() < 1e-5
    assert (wrong - expected).abs().max() > 0.1
    assert (right.T.reshape(4, 3) - expected).abs().max() > 0.1
