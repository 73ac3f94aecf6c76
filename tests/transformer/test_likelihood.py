import math

import pytest
import torch

from tests.transformer.test_decoding import decoded_logits
from transformer import likelihood
from transformer.embeddings import null_captions
from transformer.likelihood import image_log_likelihood, log_likelihood, null_image_log_likelihood, prior_score
from transformer.losses import image_loss, text_loss


@pytest.mark.parametrize("attend_pads", [True, False])
@pytest.mark.parametrize("block", ["paper", "modern"])
def test_it_is_the_probability_with_which_sampling_draws_each_token(make_prior, make_batch, block, attend_pads):
    """Held against the cache, which sees nothing of a token before it is drawn: no position can be off by one."""
    prior = make_prior(block=block, attend_pads=attend_pads)
    text_tokens, image_tokens = make_batch(5)
    probabilities = decoded_logits(prior, text_tokens, image_tokens).double().softmax(dim=-1)  # (B, h * w, K)
    flat = image_tokens.flatten(1)
    expected = [[math.log(probabilities[b, i, flat[b, i]]) for i in range(12)] for b in range(5)]
    found = image_log_likelihood(prior, text_tokens, image_tokens)
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_text_and_picture_by_the_loss_of_training(make_prior, make_batch):
    prior, (text_tokens, image_tokens) = make_prior(), make_batch(5)
    found, output = log_likelihood(prior, text_tokens, image_tokens), prior(text_tokens, image_tokens)
    assert torch.equal(found.image, image_log_likelihood(prior, text_tokens, image_tokens))
    torch.testing.assert_close(-found.image.mean(), image_loss(output.image_logits, image_tokens))
    assert (found.text[text_tokens == -1] == 0).all()
    real = (text_tokens != -1).sum()
    torch.testing.assert_close(-found.text.sum() / real, text_loss(output.text_logits, text_tokens))


def test_of_a_prior_that_knows_nothing(make_prior, make_batch):
    prior, (text_tokens, image_tokens) = make_prior(), make_batch()
    with torch.no_grad():
        prior.text_head.weight.zero_()
        prior.image_head.weight.zero_()
    found = log_likelihood(prior, text_tokens, image_tokens)
    torch.testing.assert_close(found.image, torch.full((3, 12), -math.log(13)))
    torch.testing.assert_close(found.text, torch.where(text_tokens == -1, 0.0, -math.log(11)))


def test_without_a_caption(make_prior, make_batch):
    prior, (_, image_tokens) = make_prior(), make_batch()
    null = null_image_log_likelihood(prior, image_tokens)
    assert torch.equal(null, image_log_likelihood(prior, null_captions(3, 6), image_tokens))


def test_scores_reward_what_the_caption_tells_and_punish_what_was_not_to_be_expected():
    """Sums of log p given the caption, given none, expected."""
    as_expected, told, astray, empty = [-9.0, -9.0, -9.0], [-9.0, -12.0, -9.0], [-9.0, -14.0, -7.0], [-1.0, -1.0, -1.0]
    scores = prior_score(torch.tensor([as_expected, told, astray, empty]))
    assert scores.tolist() == [0, 3, -3, 0]


def test_what_is_not_a_number_ranks_last():
    scores = prior_score(torch.tensor([[-1e9, 0.0, 0.0], [math.nan, -2.0, -1.0], [-1.0, -2.0, -1.0]]))
    assert scores.argsort(descending=True).tolist() == [2, 0, 1]


def test_a_part_at_a_time_is_the_whole(make_prior, make_batch, monkeypatch):
    prior, batch = make_prior(), make_batch()
    whole = log_likelihood(prior, *batch)
    monkeypatch.setattr(likelihood, "TOKENS_AT_A_TIME", 7)  # 15 text tokens, 36 image tokens
    for part, expected in zip(log_likelihood(prior, *batch), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_in_bfloat16(make_prior, make_batch):
    prior, batch = make_prior(), make_batch()
    exact = image_log_likelihood(prior, *batch)
    rounded = image_log_likelihood(prior.to(torch.bfloat16), *batch)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.3 < exact.std()


def test_shapes_that_do_not_fit(make_prior, make_batch):
    prior, (text_tokens, image_tokens) = make_prior(), make_batch()
    with pytest.raises(ValueError, match=r"image_tokens are \(3, 3, 4\), expected \(B, 4, 3\)"):
        image_log_likelihood(prior, text_tokens, image_tokens.transpose(1, 2))
