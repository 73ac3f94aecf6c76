"""How likely a prior finds a picture's tokens and a caption's, each token given all before it (teacher forcing).

The sum over a picture's tokens is the logarithm of its probability given the caption. What it exceeds that given no
caption by is what the caption tells about the picture, in nats, as far as the prior has learnt it: log p(image | text)
- log p(image), of which a prior that was trained without dropping captions knows the first only.

Shapes: B batch, C n_embd, V text vocabulary, K codebook, h w token grid.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer.embeddings import PAD, null_captions
from transformer.model import Prior

EXPECTED_WEIGHT = 4.0  # of the second term of prior_score: docs/sampling.md
TOKENS_AT_A_TIME = 2048  # through a head: the logits of 16,384 entries are then 128 MB in float32


class LogLikelihood(NamedTuple):
    """Natural logarithms, float32."""

    text: Tensor  # (B, text_len - 1), 0 at pads
    image: Tensor  # (B, h * w), raster order


@torch.no_grad()
def log_likelihood(prior: Prior, text_tokens: Tensor, image_tokens: Tensor) -> LogLikelihood:
    """Of every token of captions and pictures, in one pass; tokens as `Prior.forward` takes them, ValueError as there.

    The logits are the model's, in its own precision; what is computed of them is so in float32.
    """
    hidden = prior.hidden(text_tokens, image_tokens)
    return LogLikelihood(
        _of_targets(prior.text_logits, hidden.text, text_tokens),
        _of_targets(prior.image_logits, hidden.image, image_tokens.flatten(1)),
    )


@torch.no_grad()
def image_log_likelihood(prior: Prior, text_tokens: Tensor, image_tokens: Tensor) -> Tensor:
    """The same of the pictures' tokens only, (B, h * w), without the work of the text head."""
    hidden = prior.hidden(text_tokens, image_tokens)
    return _of_targets(prior.image_logits, hidden.image, image_tokens.flatten(1))


def null_image_log_likelihood(prior: Prior, image_tokens: Tensor) -> Tensor:
    """Of pictures' tokens (B, h, w) without a caption, (B, h * w)."""
    null = null_captions(len(image_tokens), prior.config.text_len, image_tokens.device)
    return image_log_likelihood(prior, null, image_tokens)


def prior_score(likelihoods: Tensor) -> Tensor:
    """Ranks pictures of one caption by the prior's own judgement: (B,) nats, the higher the better.

    Two terms. What the caption tells about the picture: log p(image | caption) - log p(image). And by how much the
    picture is likelier than was to be expected of each token in turn, log p(image | caption) plus the entropies, which
    is 0 on average of what the prior draws, and below that of what it has gone astray with. The first alone would
    choose, among guided pictures, those that guidance has driven too far; log p(image | caption) alone empty ones.

    What is not a number ranks last.

    Args:
        likelihoods: (B, 3), sums over a picture's tokens as `transformer.decoding.generate` adds them up.
    """
    cond, null, expected = likelihoods.unbind(dim=1)
    score = (cond - null) + EXPECTED_WEIGHT * (cond - expected)
    return score.nan_to_num(nan=-math.inf)  # which sorting would put first


def _of_targets(logits_of: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """hidden (B, N, C), targets (B, N), PAD where there is none -> (B, N), 0 there; a part at a time."""
    parts = zip(hidden.flatten(0, 1).split(TOKENS_AT_A_TIME), targets.flatten().split(TOKENS_AT_A_TIME), strict=True)
    losses = [F.cross_entropy(logits_of(x).float(), y, ignore_index=PAD, reduction="none") for x, y in parts]
    return -torch.cat(losses).view(targets.shape)
