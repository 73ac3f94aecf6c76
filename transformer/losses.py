"""The prior's loss: two cross entropies, each over its own kind of token, weighted 1/8 and 7/8.

https://arxiv.org/abs/2102.12092, section 2.2: each is divided by the number of its tokens in the batch, and the picture
weighs more because pictures are the aim. Pads are no targets, which is this project's reading: the model is asked for a
caption's tokens, not where it ends.

Shapes: B batch, V text vocabulary, K codebook, h w token grid.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from transformer.embeddings import PAD

TEXT_WEIGHT = 1 / 8
IMAGE_WEIGHT = 7 / 8


class PriorLoss(NamedTuple):
    """Scalars, in nats a token."""

    total: Tensor
    text: Tensor
    image: Tensor


def text_loss(logits: Tensor, text_tokens: Tensor) -> Tensor:
    """Mean cross entropy over the tokens that are no pads; 0 where all are. (B, text_len - 1, V), (B, text_len - 1)."""
    total = F.cross_entropy(logits.flatten(0, 1).float(), text_tokens.flatten(), ignore_index=PAD, reduction="sum")
    return total / (text_tokens != PAD).sum().clamp_min(1)


def image_loss(logits: Tensor, image_tokens: Tensor) -> Tensor:
    """Mean cross entropy over all image tokens. (B, h * w, K), (B, h, w)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), image_tokens.flatten())


def prior_loss(text_logits: Tensor, image_logits: Tensor, text_tokens: Tensor, image_tokens: Tensor) -> PriorLoss:
    """Losses of a prior's output on what it was given, see `Prior.forward`."""
    text, image = text_loss(text_logits, text_tokens), image_loss(image_logits, image_tokens)
    return PriorLoss(TEXT_WEIGHT * text + IMAGE_WEIGHT * image, text, image)
